//! Where the clients, the balancers and the endpoint of datagrams stand.
//!
//! Over loopback a datagram that is sent is delivered within the call that sends it, so whoever
//! sends pays for the receiver's side as well, and all balancers pay alike: most of what is
//! measured there is not theirs. With *links* each of the three has a network namespace of its own,
//! joined by pairs of virtual devices whose receiving side runs in threads of the kernel
//! (`threaded`, which needs GRO). As with a real device the sender's work then ends at the device.
//!
//! The namespaces have no names: they are gone with the process, however it ends.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns, unshare};
use nix::unistd::{Pid, geteuid};

/// Where each side stands.
pub(crate) struct Network {
    pub(crate) clients: Place,
    pub(crate) balancers: Place,
    pub(crate) endpoint: Place,
}

/// A network namespace, or the one that everybody is in, and the address to use there.
pub(crate) struct Place {
    pub(crate) address: Ipv4Addr,
    namespace: Option<File>,
}

/// What the kernel calls the namespace of a thread.
const OWN: &str = "/proc/thread-self/ns/net";

impl Network {
    /// All on this machine's loopback.
    pub(crate) fn loopback() -> Self {
        let place = || Place { address: Ipv4Addr::LOCALHOST, namespace: None };
        Self { clients: place(), balancers: place(), endpoint: place() }
    }

    /// Why there can be no links here, if there cannot.
    pub(crate) fn obstacle() -> Option<&'static str> {
        let has = |name: &str| Path::new("/usr/sbin").join(name).is_file();
        match () {
            () if !geteuid().is_root() => Some("they need root"),
            () if !has("ip") || !has("ethtool") => Some("they need iproute2 and ethtool"),
            () => None,
        }
    }

    /// A balancer between two links: to the clients and to the endpoint. What arrives anywhere is
    /// handled on `core`.
    pub(crate) fn linked(core: usize) -> Result<Self> {
        let place = |last| Place::fresh(Ipv4Addr::new(10, 77, 0, last));
        let network = Self { clients: place(2)?, balancers: place(1)?, endpoint: place(6)? };
        let near = Ipv4Addr::new(10, 77, 0, 5);
        let tag = format!("pm{:x}", std::process::id());
        let device = |side: &str| format!("{tag}{side}");
        let [c0, c1, e0, e1] = ["c0", "c1", "e0", "e1"].map(device);
        let Self { clients, balancers, endpoint } = &network;
        balancers.join((&c0, balancers.address), (clients, &c1))?;
        balancers.join((&e0, near), (endpoint, &e1))?;
        let devices = [(balancers, &c0), (balancers, &e0), (clients, &c1), (endpoint, &e1)];
        for (place, device) in devices {
            place.enter(|| receive_in_threads(device))??;
        }
        pin_receivers(&tag, core)?;
        Ok(network)
    }
}

impl Place {
    fn fresh(address: Ipv4Addr) -> Result<Self> {
        let home = File::open(OWN)?;
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        let namespace = Some(File::open(OWN)?);
        setns(home, CloneFlags::CLONE_NEWNET).context("cannot leave a network namespace")?;
        Ok(Self { address, namespace })
    }

    /// Does something there: sockets that are made and processes that are started belong there.
    pub(crate) fn enter<T>(&self, act: impl FnOnce() -> T) -> Result<T> {
        let Some(namespace) = &self.namespace else { return Ok(act()) };
        let home = File::open(OWN)?;
        setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter a namespace")?;
        let result = act();
        setns(home, CloneFlags::CLONE_NEWNET).context("cannot leave a namespace")?;
        Ok(result)
    }

    /// Lays a link from here to another place: 30 bits of prefix for its two ends.
    fn join(&self, (near, address): (&str, Ipv4Addr), (to, far): (&Self, &str)) -> Result<()> {
        let other = to.namespace.as_ref().context("links join namespaces")?;
        let other = format!("/proc/{}/fd/{}", std::process::id(), other.as_raw_fd());
        self.enter(|| {
            run("ip", &format!("link add {near} type veth peer name {far} netns {other}"))?;
            raise(near, address)
        })??;
        to.enter(|| raise(far, to.address))?
    }
}

fn raise(device: &str, address: Ipv4Addr) -> Result<()> {
    run("ip", &format!("addr add {address}/30 dev {device}"))?;
    run("ip", &format!("link set {device} up"))
}

/// Has a device's receiving side run in a thread of the kernel.
fn receive_in_threads(device: &str) -> Result<()> {
    // A pair passes by the thread what its sender could have offered as a segmented TCP stream.
    run("ethtool", &format!("-K {device} gro on tso off"))?;
    // What stands below /sys is the network of who mounted it.
    let script = format!("mount -t sysfs none /sys && echo 1 > /sys/class/net/{device}/threaded");
    succeed(Command::new("unshare").args(["--mount", "sh", "-c", &script]))
}

/// Keeps those threads off the balancers' core, and lets them come before the load on theirs, as
/// interrupts do: what they do not take in time is lost.
fn pin_receivers(tag: &str, core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core)?;
    let prefix = format!("napi/{tag}");
    let mut pinned = 0;
    for process in fs::read_dir("/proc")?.flatten() {
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        let number = process.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(number) = number.filter(|_| name.starts_with(&prefix)) {
            sched_setaffinity(Pid::from_raw(number), &cores).context("cannot pin a receiver")?;
            let first = ["--fifo", "--pid", "10", &number.to_string()];
            succeed(Command::new("chrt").args(first))?;
            pinned += 1;
        }
    }
    ensure!(pinned >= 4, "the kernel has no threads that receive");
    Ok(())
}

fn run(program: &str, arguments: &str) -> Result<()> {
    let program = Path::new("/usr/sbin").join(program);
    succeed(Command::new(program).args(arguments.split_whitespace()))
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed");
    Ok(())
}
