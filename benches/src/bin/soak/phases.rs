//! What is done to the balancer and its endpoints while the load is on.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::balancers::Pointsman;
use crate::claims::Claims;
use crate::endpoints::{COUNT, Endpoints};
use crate::interrupt::{pause, pause_until};
use crate::load::Watch;

/// How long workers may take until they have heard of a change.
const HEARING: Duration = Duration::from_millis(500);
/// One kill in so many seconds, half of which the endpoint is away.
const KILL_SECONDS: u64 = 6;
/// How long one that flaps is away, and there.
const FLAP: Duration = Duration::from_millis(50);
/// Reloads, and the time from one to the next.
const RELOADS: u64 = 300;
const RELOAD_EACH: Duration = Duration::from_millis(100);
/// Upgrades, if there is time: one in so many seconds.
const UPGRADES: u64 = 20;
const UPGRADE_SECONDS: u64 = 3;
/// How far a share may be from what weights say.
const SHARE_TOLERANCE: f64 = 0.05;

/// One phase.
pub(crate) struct Phase {
    pub(crate) name: &'static str,
    /// What is done in it.
    pub(crate) act: Act,
}

pub(crate) enum Act {
    /// Something with endpoints alone, for any balancer. HAProxy has its turns too.
    Endpoints(fn(&mut Endpoints, Duration) -> Result<String>),
    /// Something with the balancer.
    Pointsman(fn(&mut Pointsman, &mut Witness<'_>) -> Result<String>),
}

/// Who sees what comes of it.
pub(crate) struct Witness<'a> {
    pub(crate) watch: &'a Watch,
    pub(crate) claims: &'a mut Claims,
    pub(crate) duration: Duration,
}

/// The first and the last are compared with each other.
pub(crate) const QUIET: [&str; 2] = ["quiet", "quiet-again"];

pub(crate) const ALL: [Phase; 8] = [
    Phase { name: QUIET[0], act: Act::Pointsman(rest) },
    Phase { name: "kill", act: Act::Endpoints(kill) },
    Phase { name: "flapping", act: Act::Endpoints(flap) },
    Phase { name: "drain", act: Act::Pointsman(drain) },
    Phase { name: "weights", act: Act::Pointsman(weigh) },
    Phase { name: "reloads", act: Act::Pointsman(reload) },
    Phase { name: "upgrades", act: Act::Pointsman(upgrade) },
    Phase { name: QUIET[1], act: Act::Pointsman(rest) },
];

fn rest(_: &mut Pointsman, witness: &mut Witness<'_>) -> Result<String> {
    pause(witness.duration)?;
    Ok("nothing is done".to_owned())
}

/// Each endpoint in turn is killed and, after a while, started again.
fn kill(endpoints: &mut Endpoints, duration: Duration) -> Result<String> {
    let kills = (duration.as_secs() / KILL_SECONDS).max(1);
    let half = duration / (2 * kills as u32);
    for number in 0..kills {
        let endpoint = number as usize % COUNT;
        endpoints.kill(endpoint)?;
        pause(half)?;
        endpoints.restart(endpoint)?;
        pause(half)?;
    }
    Ok(format!("{kills} kills, away for {half:.1?} each"))
}

/// One endpoint is killed and started again, ten times a second.
fn flap(endpoints: &mut Endpoints, duration: Duration) -> Result<String> {
    let begun = Instant::now();
    let (mut next, mut kills) = (begun, 0);
    while begun.elapsed() < duration {
        endpoints.kill(1)?;
        kills += 1;
        next += FLAP;
        pause_until(next)?;
        endpoints.restart(1)?;
        // What the machine held up is not made up for.
        next = (next + FLAP).max(Instant::now());
        pause_until(next)?;
    }
    let rate = f64::from(kills) / begun.elapsed().as_secs_f64();
    Ok(format!("{kills} kills, {rate:.1} a second"))
}

/// One endpoint drains for half of the time, and serves again.
fn drain(pointsman: &mut Pointsman, witness: &mut Witness<'_>) -> Result<String> {
    const ENDPOINT: usize = 2;
    pointsman.change(ENDPOINT, "\"draining\":true")?;
    pause(HEARING)?;
    // The clients take what is new there for a failure meanwhile.
    witness.watch.close(Some(ENDPOINT));
    pause(witness.duration / 2)?;
    witness.watch.close(None);
    let before = witness.watch.answers()[ENDPOINT];
    pointsman.change(ENDPOINT, "\"draining\":false")?;
    pause(witness.duration / 2)?;
    let gained = witness.watch.answers()[ENDPOINT] - before;
    witness.claims.note("an endpoint serves again after its drain", gained > 0, || {
        "it has answered no new connection".to_owned()
    });
    Ok(format!("1 drain; {gained} new connections to it afterwards"))
}

/// The share of one endpoint grows and shrinks.
fn weigh(pointsman: &mut Pointsman, witness: &mut Witness<'_>) -> Result<String> {
    const WEIGHTS: [u32; 4] = [5, 2, 9, 1];
    let mut told = Vec::new();
    for weight in WEIGHTS {
        pointsman.change(0, &format!("\"weight\":{weight}"))?;
        pause(HEARING)?;
        let before = witness.watch.answers();
        pause(witness.duration / WEIGHTS.len() as u32)?;
        let after = witness.watch.answers();
        let all: u64 = after.iter().sum::<u64>() - before.iter().sum::<u64>();
        let share = (after[0] - before[0]) as f64 / all.max(1) as f64;
        let expected = f64::from(weight) / f64::from(weight + COUNT as u32 - 1);
        let is_near = (share - expected).abs() < SHARE_TOLERANCE;
        witness.claims.note("shares follow weights", is_near, || {
            format!("weight {weight} has a share of {share:.3}, not {expected:.3}")
        });
        told.push(format!("{weight}: {share:.2}"));
    }
    Ok(format!("shares by weight {}", told.join(", ")))
}

/// The file changes and is read again, ten times a second.
fn reload(pointsman: &mut Pointsman, witness: &mut Witness<'_>) -> Result<String> {
    let reloads = RELOADS.min(witness.duration.as_secs() * 10).max(1);
    let begun = Instant::now();
    let mut next = begun;
    for number in 0..reloads {
        // The last one leaves things as they were.
        pointsman.reload((reloads - number).is_multiple_of(2))?;
        next = (next + RELOAD_EACH).max(Instant::now());
        pause_until(next)?;
    }
    let rate = reloads as f64 / begun.elapsed().as_secs_f64();
    Ok(format!("{reloads} reloads, {rate:.1} a second"))
}

/// One process takes over from another, again and again.
fn upgrade(pointsman: &mut Pointsman, witness: &mut Witness<'_>) -> Result<String> {
    let upgrades = UPGRADES.min(witness.duration.as_secs() / UPGRADE_SECONDS).max(1);
    let mut next = Instant::now();
    for _ in 0..upgrades {
        pointsman.upgrade()?;
        next += witness.duration / upgrades as u32;
        pause_until(next)?;
    }
    Ok(format!("{upgrades} upgrades"))
}
