//! The power of two choices in every language that has an example: each is held to the same.

mod built;
mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{WIT, candidates, endpoint_of, engine, engine_of, flow, patient, place, policy_of};
use pointsman_core::policy::{Flow, Policy, Source};
use pointsman_core::{Candidates, Endpoint, Generation};
use pointsman_plugin::{
    Engine, EngineLimits, GuestPolicy, InstanceError, LoadError, Module, PolicySettings,
    PolicyStats, Profile,
};
use wit_parser::Resolve;

/// Flows asked about where shares are counted.
const FLOWS: u64 = 6000;

/// A built policy that can be asked.
struct Subject {
    module: Module,
    stats: Arc<PolicyStats>,
}

impl Subject {
    fn new(name: &str, profile: Profile) -> Option<Self> {
        let bytes = built::plugin(name)?;
        let module = engine().of_profile(profile).unwrap().load(&bytes);
        let module = module.unwrap_or_else(|error| panic!("{name}: {error}"));
        Some(Self { module, stats: Arc::default() })
    }

    fn configured(
        &self,
        config: &str,
        among: &Arc<Candidates>,
    ) -> Result<GuestPolicy, InstanceError> {
        // The limits of a policy of any language, but for the deadlines: the machine may be busy.
        let settings = PolicySettings { config_json: config.into(), ..patient() };
        policy_of(&self.module, settings, &self.stats, among)
    }

    fn check_everything(&self) {
        self.check_shares_of_idle_endpoints();
        self.check_shares_of_loaded_endpoints();
        self.check_that_weights_count();
        self.check_that_more_choices_find_the_least_loaded();
        self.check_that_what_failed_is_avoided();
        self.check_that_two_instances_agree();
        self.check_that_a_bad_config_is_refused();
        assert_eq!(self.stats.snapshot().faults_total(), 0);
    }

    fn check_shares_of_idle_endpoints(&self) {
        let among = evenly(4);
        let shares = shares(&mut self.configured("null", &among).unwrap(), &among);
        assert!(shares.iter().all(|share| share.abs_diff(FLOWS / 4) < 200), "{shares:?}");
    }

    fn check_shares_of_loaded_endpoints(&self) {
        let among = evenly(4);
        load(&among, &[9, 3, 1, 2]);
        let shares = shares(&mut self.configured("{}", &among).unwrap(), &among);
        // Of the six pairs, index 2 wins three, index 3 two and index 1 one.
        let expected = [0, 1000, 3000, 2000];
        assert_eq!(shares[0], 0);
        let pairs = shares.iter().zip(expected);
        assert!(
            pairs.into_iter().all(|(share, wanted)| share.abs_diff(wanted) < 250),
            "{shares:?}"
        );
    }

    fn check_that_weights_count(&self) {
        // Weights 1, 2 and 3: with these loads the last has the fewest flows per weight.
        let among = candidates(1, 3);
        load(&among, &[3, 5, 6]);
        let mut policy = self.configured(r#"{"choices":3}"#, &among).unwrap();
        assert_eq!(shares(&mut policy, &among), [0, 0, FLOWS]);
    }

    fn check_that_more_choices_find_the_least_loaded(&self) {
        let among = evenly(4);
        load(&among, &[9, 3, 1, 2]);
        let mut policy = self.configured(r#"{"choices":16}"#, &among).unwrap();
        assert_eq!(shares(&mut policy, &among), [0, 0, FLOWS, 0]);
    }

    fn check_that_what_failed_is_avoided(&self) {
        let among = evenly(4);
        load(&among, &[7, 0, 7, 7]);
        let failed = [among.endpoints[1].id];
        let retry = Flow { attempt: 1, tried: &failed, ..flow() };
        let mut policy = self.configured("null", &among).unwrap();
        let picks = flows(&retry, 500).map(|flow| endpoint_of(&policy.decide(&flow, &among)));
        let picks: Vec<_> = picks.collect();
        assert!(!picks.contains(&1) && [0, 2, 3].iter().all(|other| picks.contains(other)));

        // Nothing else is left than what has failed. The host lets nobody repeat that while others
        // are untried, so that the plugin itself has answered.
        let lone = evenly(1);
        let failed = [lone.endpoints[0].id];
        let retry = Flow { attempt: 1, tried: &failed, ..flow() };
        let decided = self.configured("null", &lone).unwrap().decide(&retry, &lone);
        assert_eq!((endpoint_of(&decided), decided.source), (0, Source::Plugin));
    }

    fn check_that_two_instances_agree(&self) {
        let among = evenly(7);
        let [mut one, mut other] = [(); 2].map(|()| self.configured("null", &among).unwrap());
        // Of two that have a different past, too.
        let _ = one.decide(&flow(), &among);
        for flow in flows(&flow(), 500) {
            assert_eq!(one.decide(&flow, &among), other.decide(&flow, &among));
        }
    }

    fn check_that_a_bad_config_is_refused(&self) {
        for (config, message) in [
            (r#"{"choices":0}"#, "choices: expected 1 to 16, found 0"),
            (r#"{"choices":17}"#, "choices: expected 1 to 16, found 17"),
            (r#"{"choises":2}"#, "unknown key `choises`, expected `choices`"),
        ] {
            let refused = self.configured(config, &evenly(2)).map(drop);
            assert_eq!(refused, Err(InstanceError::Config(message.into())), "{config}");
        }
    }
}

/// Endpoints of weight 1.
fn evenly(count: u32) -> Arc<Candidates> {
    evenly_in(1, count)
}

fn evenly_in(generation: u64, count: u32) -> Arc<Candidates> {
    let endpoints = candidates(1, count).endpoints.to_vec();
    let endpoints = endpoints.into_iter().map(|endpoint| Endpoint { weight: 1, ..endpoint });
    let generation = Generation(generation);
    Arc::new(Candidates { generation, endpoints: endpoints.collect(), table: None })
}

fn load(among: &Candidates, flows: &[u32]) {
    for (endpoint, flows) in among.endpoints.iter().zip(flows) {
        (0..*flows).for_each(|_| endpoint.load.on_flow_started());
    }
}

/// Flows like this one, each with random bits of its own.
fn flows<'a>(like: &Flow<'a>, count: u64) -> impl Iterator<Item = Flow<'a>> {
    (1..=count).map(|number| Flow { random: number.wrapping_mul(0x9e37_79b9_7f4a_7c15), ..*like })
}

/// How many flows each endpoint gets.
fn shares(policy: &mut GuestPolicy, among: &Arc<Candidates>) -> Vec<u64> {
    let mut shares = vec![0; among.endpoints.len()];
    for flow in flows(&flow(), FLOWS) {
        let decided = policy.decide(&flow, among);
        assert_eq!(decided.source, Source::Plugin);
        shares[endpoint_of(&decided) as usize] += 1;
    }
    shares
}

#[test]
fn the_policy_in_rust_is_the_power_of_two_choices() {
    if let Some(subject) = Subject::new("p2c", Profile::Strict) {
        subject.check_everything();
    }
}

#[test]
fn the_policy_in_c_is_the_power_of_two_choices() {
    if let Some(subject) = Subject::new("p2c-c", Profile::Strict) {
        subject.check_everything();
    }
}

#[test]
fn the_policy_in_javascript_is_the_power_of_two_choices() {
    if let Some(subject) = Subject::new("p2c-javascript", Profile::Compat) {
        subject.check_everything();
    }
}

/// They draw from the same numbers in the same order, so they are one policy to the last flow.
#[test]
fn the_policies_in_rust_and_c_answer_every_flow_alike() {
    let subjects = ["p2c", "p2c-c"].map(|name| Subject::new(name, Profile::Strict));
    let [Some(rust), Some(c)] = subjects else { return };
    for choices in 1..=5 {
        let among = candidates(1, 9);
        load(&among, &[4, 3, 0, 7, 2, 5, 1, 8, 6]);
        let config = format!(r#"{{"choices":{choices}}}"#);
        let [mut rust, mut c] = [&rust, &c].map(|it| it.configured(&config, &among).unwrap());
        let tried = [among.endpoints[2].id];
        for like in [flow(), Flow { tried: &tried, ..flow() }] {
            for flow in flows(&like, 500) {
                assert_eq!(rust.decide(&flow, &among), c.decide(&flow, &among));
            }
        }
    }
}

#[test]
fn a_guest_in_c_hears_of_any_number_of_lists() {
    let Some(subject) = Subject::new("p2c-c", Profile::Strict) else { return };
    let mut policy = subject.configured(r#"{"choices":16}"#, &evenly(1)).unwrap();
    for generation in 2..2000 {
        let count = 1 + generation % 16;
        let among = evenly_in(u64::from(generation), count);
        let least = generation / 3 % count;
        let loads: Vec<_> = (0..count).map(|index| u32::from(index != least)).collect();
        load(&among, &loads);
        assert_eq!(endpoint_of(&policy.decide(&flow(), &among)), least);
    }
    assert_eq!(subject.stats.snapshot().faults_total(), 0);
}

#[test]
fn a_guest_with_a_runtime_is_refused_where_the_profile_is_strict_and_told_of_the_other() {
    let Some(bytes) = built::plugin("p2c-javascript") else { return };
    let error = engine().load(&bytes).unwrap_err();
    assert!(matches!(&error, LoadError::Wasi(import) if import.starts_with("wasi:")), "{error}");
    assert!(error.to_string().contains("profile = \"compat\""), "{error}");
}

#[test]
fn the_glue_of_c_is_of_the_interface_as_it_is() {
    let glue = include_bytes!("../../../examples/policies/c/generated/chooser_component_type.o");
    let (_, glue) = wit_component::metadata::decode(glue).unwrap();
    let mut resolve = Resolve::default();
    let package = resolve.push_str("policy.wit", WIT).unwrap();
    let here = resolve.select_world(&[package], Some("chooser")).unwrap();
    let items = |resolve: &Resolve, world| {
        let world = &resolve.worlds[world];
        let keys = world.imports.keys().chain(world.exports.keys());
        keys.map(|key| resolve.name_world_key(key)).collect::<Vec<_>>()
    };
    let advice = "generate it again, as examples/policies/c/README.md says";
    assert_eq!(items(&glue.resolve, glue.world), items(&resolve, here), "{advice}");
    assert!(resolve.merge(glue.resolve).is_ok(), "{advice}");
}

/// Not a test of anything: `cargo xtask bench languages` prints what each language costs.
#[test]
#[ignore = "measures, and takes seconds"]
fn what_each_language_costs() {
    println!("| language | size | compile | start | decision | executed | memory |");
    println!("|---|---|---|---|---|---|---|");
    for (language, name, profile) in [
        ("Rust", "p2c", Profile::Strict),
        ("C", "p2c-c", Profile::Strict),
        ("JavaScript", "p2c-javascript", Profile::Compat),
    ] {
        let Some(bytes) = built::plugin(name) else { continue };
        let limits = EngineLimits { instances_max: 4, ..EngineLimits::default() };
        let engine = engine_of(limits).of_profile(profile).unwrap();
        let counting = engine_of(EngineLimits { counts_fuel: true, ..limits });
        let counting = counting.of_profile(profile).unwrap();
        engine.prepare_thread();
        let mut costs = costs(&engine, &bytes).to_vec();
        costs.extend(sizes(&counting, &bytes));
        println!("| {language} | {} |", costs.join(" | "));
    }
}

fn costs(engine: &Engine, bytes: &[u8]) -> [String; 4] {
    let begun = Instant::now();
    let module = engine.load(bytes).unwrap();
    let compile = begun.elapsed();
    let among = evenly(10);
    let stats = Arc::default();
    let new = || {
        let settings = PolicySettings::new("bench", r#"{"choices":2}"#);
        GuestPolicy::new(&module, Arc::new(settings), place(&stats), &among).unwrap()
    };
    let start = fastest(20, || drop(new()));
    let mut policy = new();
    let round = fastest(200, || {
        for flow in flows(&flow(), 200) {
            std::hint::black_box(policy.decide(&flow, &among));
        }
    });
    [
        format!("{:.1} KiB", bytes.len() as f64 / 1024.0),
        format!("{} ms", compile.as_millis()),
        format!("{} µs", start.as_micros()),
        format!("{} ns", round.as_nanos() / 200),
    ]
}

/// What a decision executes, in the runtime's units of about one instruction, and how large the
/// guest's memory is after many.
fn sizes(engine: &Engine, bytes: &[u8]) -> [String; 2] {
    let module = engine.load(bytes).unwrap();
    let among = evenly(10);
    let settings = Arc::new(patient());
    let mut policy = GuestPolicy::new(&module, settings, place(&Arc::default()), &among).unwrap();
    let mut executed = Vec::new();
    for flow in flows(&flow(), 1000) {
        let _ = policy.decide(&flow, &among);
        executed.extend(policy.fuel_used());
    }
    executed.sort_unstable();
    [executed[executed.len() / 2].to_string(), format!("{} KiB", policy.memory_bytes() / 1024)]
}

/// How long it takes when nothing interferes.
fn fastest(rounds: u32, mut run: impl FnMut()) -> Duration {
    let round = |_| {
        let begun = Instant::now();
        run();
        begun.elapsed()
    };
    (0..rounds).map(round).min().unwrap_or_default()
}
