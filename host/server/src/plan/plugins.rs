//! Looks up policies: names, plugin files and what plugins are configured with.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pointsman_plugin::Profile;

use super::findings::{Distinct, Findings};
use super::{Native, PluginId, PluginPlan, PolicyPlan, json};
use crate::config::{self, Policy};
use crate::problem::suggestion;

/// Where packages put plugins.
const SYSTEM_FOLDER: &str = "/usr/lib/pointsman/plugins";

/// Where plugin files are looked for, in order.
#[derive(Debug, Clone, Default)]
pub struct PluginFolders {
    folders: Vec<PathBuf>,
}

impl PluginFolders {
    /// Beside the configuration, then in the folders that were asked for, then `plugins` beside the
    /// folder of the executable (so that a build tree works in place), then where packages put them.
    pub fn new(config_file: &Path, asked_for: &[PathBuf]) -> Self {
        let beside = config_file.parent().filter(|folder| !folder.as_os_str().is_empty());
        let beside = beside.unwrap_or(Path::new(".")).to_owned();
        let mut folders = vec![beside];
        folders.extend_from_slice(asked_for);
        folders.extend(Self::in_system());
        Self { folders }
    }

    /// The folders that are searched whoever asks.
    pub fn in_system() -> impl Iterator<Item = PathBuf> {
        beside_executable().into_iter().chain([PathBuf::from(SYSTEM_FOLDER)])
    }

    /// The folders.
    pub fn as_slice(&self) -> &[PathBuf] {
        &self.folders
    }

    /// What to do about a file that is in none of them: its name may only be misspelt.
    fn advice(&self, plugin: &Path) -> String {
        let entries = self.folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok());
        let names =
            entries.flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let names: Vec<_> = names.filter(|name| name.ends_with(".wasm")).collect();
        let hint = suggestion(&plugin.to_string_lossy(), names.iter().map(String::as_str));
        let hint = if hint.contains("did you mean") {
            hint
        } else {
            "; make it with `pointsman policy build`, or give its folder with --plugins DIR"
                .to_owned()
        };
        let places: Vec<_> = self.folders.iter().map(|it| it.display().to_string()).collect();
        format!(" in {}{hint}", places.join(", "))
    }

    fn find(&self, plugin: &Path) -> Option<PathBuf> {
        if plugin.is_absolute() {
            return plugin.is_file().then(|| plugin.to_owned());
        }
        self.folders.iter().map(|folder| folder.join(plugin)).find(|file| file.is_file())
    }
}

fn beside_executable() -> Option<PathBuf> {
    let executable = std::env::current_exe().ok()?;
    Some(executable.parent()?.parent()?.join("plugins"))
}

/// All policies a cluster can name.
pub(super) struct Policies {
    pub(super) plugins: Vec<PluginPlan>,
    by_name: HashMap<String, PolicyPlan>,
}

impl Policies {
    /// The policy of this name. The built-in ones need no definition.
    pub(super) fn find(&self, key: &str, name: &str, findings: &mut Findings) -> PolicyPlan {
        if let Some(native) = Native::by_name(name) {
            return PolicyPlan::Native(native);
        }
        if let Some(policy) = self.by_name.get(name) {
            return *policy;
        }
        let mut known: Vec<&str> = self.by_name.keys().map(String::as_str).collect();
        known.sort_unstable();
        known.extend(Native::ALL.map(Native::name));
        let hint = suggestion(name, known);
        findings.add(key, format!("no policy is named \"{name}\"{hint}"));
        PolicyPlan::Native(Native::RoundRobin)
    }
}

pub(super) fn resolve(
    policies: &[Policy],
    folders: &PluginFolders,
    findings: &mut Findings,
) -> Policies {
    let mut all = Policies { plugins: Vec::new(), by_name: HashMap::new() };
    let mut names = Distinct::default();
    for (place, policy) in policies.iter().enumerate() {
        let key = format!("policies[{place}]");
        let name = findings.required(&format!("{key}.name"), policy.name.as_ref(), "name it");
        names.note(findings, &format!("{key}.name"), name);
        if Native::by_name(name).is_some() {
            findings.add(
                format!("{key}.name"),
                format!("\"{name}\" is built in and can be used as it is; choose another name"),
            );
        }
        let plan = match (&policy.plugin, &policy.native) {
            (Some(plugin), None) => {
                let file = file(&format!("{key}.plugin"), plugin, folders, findings);
                all.plugins.push(plugin_plan(&key, name, policy, file, findings));
                PolicyPlan::Plugin(PluginId(all.plugins.len() - 1))
            }
            (None, Some(native)) => native_plan(&key, native, policy, findings),
            (given, _) => {
                let both = if given.is_some() {
                    "both are given; leave one of them out"
                } else {
                    "is missing; write plugin = \"file.wasm\", or native = \"round-robin\""
                };
                findings.add(format!("{key}.plugin"), both);
                PolicyPlan::Native(Native::RoundRobin)
            }
        };
        all.by_name.entry(name.to_owned()).or_insert(plan);
    }
    all
}

fn native_plan(key: &str, name: &str, policy: &Policy, findings: &mut Findings) -> PolicyPlan {
    if policy.config.is_some() {
        findings.add(format!("{key}.config"), "native policies take none; leave it out");
    }
    if policy.watch {
        findings.add(format!("{key}.watch"), "a native policy has no file to watch; leave it out");
    }
    PolicyPlan::Native(native(&format!("{key}.native"), name, findings))
}

fn native(key: &str, name: &str, findings: &mut Findings) -> Native {
    Native::by_name(name).unwrap_or_else(|| {
        let hint = suggestion(name, Native::ALL.into_iter().map(Native::name));
        findings.add(key, format!("no native policy is named \"{name}\"{hint}"));
        Native::RoundRobin
    })
}

fn file(key: &str, plugin: &Path, folders: &PluginFolders, findings: &mut Findings) -> PathBuf {
    folders.find(plugin).unwrap_or_else(|| {
        let advice = if plugin.is_absolute() {
            "; give the path of a .wasm file that exists".to_owned()
        } else {
            folders.advice(plugin)
        };
        findings.add(key, format!("there is no file \"{}\"{advice}", plugin.display()));
        plugin.to_owned()
    })
}

fn plugin_plan(
    key: &str,
    name: &str,
    policy: &Policy,
    file: PathBuf,
    findings: &mut Findings,
) -> PluginPlan {
    let config = match policy.config.as_ref().map(json::from_toml) {
        None => "null".to_owned(),
        Some(Ok(json)) => json,
        Some(Err(problem)) => {
            findings.add(format!("{key}.config"), problem);
            String::new()
        }
    };
    let memory_mib =
        findings.within(&format!("{key}.memory_max_mib"), policy.memory_max_mib, 1..=1024);
    PluginPlan {
        name: name.to_owned(),
        key: key.to_owned(),
        file,
        profile: match policy.profile {
            config::Profile::Strict => Profile::Strict,
            config::Profile::Compat => Profile::Compat,
        },
        config,
        fallback: native(&format!("{key}.fallback"), &policy.fallback, findings),
        on_swap: policy.on_swap,
        watch: policy.watch,
        rollback_faults: findings.within(
            &format!("{key}.rollback_faults"),
            policy.rollback_faults,
            1..=1_000_000,
        ),
        rollback_window: findings
            .millis(&format!("{key}.rollback_window_ms"), policy.rollback_window_ms),
        tick: tick(&format!("{key}.tick_ms"), policy.tick_ms, findings),
        decide_deadline: findings
            .millis(&format!("{key}.decide_deadline_ms"), policy.decide_deadline_ms),
        configure_deadline: findings
            .millis(&format!("{key}.configure_deadline_ms"), policy.configure_deadline_ms),
        memory_max_bytes: memory_mib as usize * 1024 * 1024,
        removed: false,
    }
}

/// Not so often that one guest could keep the thread of all of them busy.
fn tick(key: &str, ms: u64, findings: &mut Findings) -> Duration {
    Duration::from_millis(findings.within(key, ms, 100..=3_600_000))
}
