//! A thousand swaps in a row, under load: what they cost whoever has traffic meanwhile.
//!
//! Pointsman alone, with a listener for connections (256 of them, wrk) and one for datagrams (1,000
//! flows). Windows without swaps alternate with windows in which one swap follows another, so that
//! both see the same machine. Every twentieth swap is of a file that the balancer has not seen
//! before, so that compiling is part of it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use pointsman_benches::processes::{ask, number_before, run_pointsman, socket_errors, target};

use crate::datagrams::{self, Clients, Scenario};
use crate::median;
use crate::network::Network;
use crate::plans::{Plan, Traffic, free_address};
use crate::proxies::Proxy;
use crate::reflector::Reflector;
use crate::requests::{CORE, Endpoint};

/// Swaps after which the memory is looked at for the first time.
const SWAPS_WARM: usize = 100;
/// One swap in so many is of a new file.
const COMPILED_EACH: usize = 20;
/// Between two rounds of the datagrams, so that they take little of the machine.
const PAUSE: Duration = Duration::from_millis(100);
/// Windows after which the storm ends, however few swaps it had.
const WINDOWS_MAX: usize = 200;
/// The policy that is swapped, and the files that take turns.
const POLICY: &str = "p2c";
const FILES: [&str; 2] = ["p2c.wasm", "round-robin.wasm"];

/// What a window of load has shown.
struct Window {
    p99_ms: f64,
    errors: u64,
    requests: f64,
    datagrams: Exchanges,
}

/// Exchanges of datagrams that have ended.
#[derive(Clone, Copy, Default)]
struct Exchanges {
    complete: u64,
    lost: u64,
}

/// Runs the storm and prints what came of it.
pub(crate) fn run(folder: &Path, seconds: u64, swaps: usize) -> Result<()> {
    let folder = folder.join("storm");
    fs::create_dir_all(&folder)?;
    let endpoint = Endpoint::start(&folder)?;
    let network = Network::loopback();
    let reflector = Reflector::start(&network.endpoint)?;
    let (plan, datagrams_at, socket) = plan(&folder, &endpoint, &reflector)?;
    let proxy = Proxy::start_unpinned(&plan)?;
    let flows = Flows::start(datagrams_at, reflector)?;
    let mut storm = Storm { socket, files: files()?, swaps: Vec::new() };
    let (mut quiet, mut stormy) = (Vec::new(), Vec::new());
    let mut warm_bytes = None;
    for _ in 0..WINDOWS_MAX {
        if storm.swaps.len() >= swaps {
            break;
        }
        quiet.push(flows.beside(|| window(&plan, seconds))?);
        stormy.push(flows.beside(|| storm.blow(|| window(&plan, seconds)))?);
        if storm.swaps.len() >= SWAPS_WARM && warm_bytes.is_none() {
            warm_bytes = Some(proxy.memory_bytes()?);
        }
    }
    flows.stop()?;
    // What was dropped last is given back by threads of the balancer's own.
    thread::sleep(Duration::from_secs(1));
    let memory = [warm_bytes.context("too few swaps to compare memory")?, proxy.memory_bytes()?];
    storm.print([&quiet, &stormy], memory);
    Ok(())
}

/// One window of requests.
fn window(plan: &Plan, seconds: u64) -> Result<Window> {
    let mut wrk = Command::new("taskset");
    wrk.args(["-c", CORE, "wrk", "--threads", "1", "--connections", "256", "--latency"]);
    wrk.args(["--timeout", "10s"]).arg(format!("--duration={seconds}s"));
    let output = wrk.arg(format!("http://{}/", plan.address)).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "wrk failed: {text}");
    let p99 = text.lines().find_map(|line| line.trim().strip_prefix("99%"));
    Ok(Window {
        p99_ms: p99.and_then(millis).with_context(|| format!("wrk names no 99%: {text}"))?,
        errors: socket_errors(&text),
        requests: number_before(&text, " requests in ").context("wrk reports no requests")?,
        datagrams: Exchanges::default(),
    })
}

/// Reads a time as wrk writes it.
fn millis(text: &str) -> Option<f64> {
    let text = text.trim();
    let units = [("us", 1e-3), ("ms", 1.0), ("s", 1e3)];
    let (digits, factor) =
        units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    digits.parse::<f64>().ok().map(|number| number * factor)
}

/// What a swap has taken.
struct Swap {
    took_ms: f64,
    pause_us: f64,
    compiled: bool,
}

/// Whoever swaps.
struct Storm {
    socket: PathBuf,
    files: Vec<Vec<u8>>,
    swaps: Vec<Swap>,
}

impl Storm {
    /// Swaps for as long as `load` takes.
    fn blow(&mut self, load: impl FnOnce() -> Result<Window> + Send) -> Result<Window> {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let load = scope.spawn(|| {
                let window = load();
                is_over.store(true, Relaxed);
                window
            });
            let mut blown = Ok(());
            while blown.is_ok() && !is_over.load(Relaxed) {
                blown = self.swap();
            }
            let window = load.join().map_err(|_| anyhow!("the load panicked"))?;
            blown.and(window)
        })
    }

    fn swap(&mut self) -> Result<()> {
        let number = self.swaps.len();
        let compiled = number.is_multiple_of(COMPILED_EACH);
        let mut bytes = self.files[number % FILES.len()].clone();
        if compiled {
            append_section(&mut bytes, number);
        }
        let begun = Instant::now();
        let answer = ask(&self.socket, ("POST", &format!("/v1/policies/{POLICY}")), &bytes)?;
        ensure!(answer.contains(" 200 "), "a swap is refused: {answer}");
        let pauses = answer.split("\"pause_max_ns\":").skip(1);
        let pause_ns = pauses.filter_map(|text| {
            let end = text.find(|c: char| !c.is_ascii_digit())?;
            text[..end].parse::<f64>().ok()
        });
        self.swaps.push(Swap {
            took_ms: begun.elapsed().as_secs_f64() * 1e3,
            pause_us: pause_ns.reduce(f64::max).context("a swap tells no pause")? / 1e3,
            compiled,
        });
        Ok(())
    }

    fn print(&self, [quiet, stormy]: [&[Window]; 2], [warm, end]: [u64; 2]) {
        let p99 = |windows: &[Window]| {
            median(&mut windows.iter().map(|window| window.p99_ms).collect::<Vec<_>>())
        };
        let all = || quiet.iter().chain(stormy);
        let errors: u64 = all().map(|window| window.errors).sum();
        let requests: f64 = all().map(|window| window.requests).sum();
        println!(
            "{:16} {} swaps; {requests:.0} requests, {errors} socket errors; p99 {:.2} ms with \
             swaps, {:.2} ms without: {:.2} times",
            "swaps",
            self.swaps.len(),
            p99(stormy),
            p99(quiet),
            p99(stormy) / p99(quiet)
        );
        for (when, windows) in [("with", stormy), ("without", quiet)] {
            let complete: u64 = windows.iter().map(|window| window.datagrams.complete).sum();
            let lost: u64 = windows.iter().map(|window| window.datagrams.lost).sum();
            println!(
                "{:16} datagrams {when} swaps: {complete} exchanges in 1,000 flows, {lost} lost",
                "swaps"
            );
        }
        for (name, compiled) in [("compiled", true), ("known", false)] {
            let of = || self.swaps.iter().filter(|swap| swap.compiled == compiled);
            let took = median(&mut of().map(|swap| swap.took_ms).collect::<Vec<_>>());
            println!("{:16} a swap of a file that is {name}: {took:.1} ms (median)", "swaps");
        }
        let mut pauses: Vec<_> = self.swaps.iter().map(|swap| swap.pause_us).collect();
        let middle = median(&mut pauses);
        let longest = pauses.last().copied().unwrap_or_default();
        println!("{:16} workers paused {middle:.1} µs (median), {longest:.1} µs at most", "swaps");
        println!(
            "{:16} memory {} KiB after {SWAPS_WARM} swaps and {} KiB at the end: {:+.1} %",
            "swaps",
            warm / 1024,
            end / 1024,
            (end as f64 / warm as f64 - 1.0) * 100.0
        );
    }
}

/// Makes a file of other bytes and the same meaning: a custom section at its end.
fn append_section(bytes: &mut Vec<u8>, number: usize) {
    let text = format!("storm{number:05}");
    let name = text.len() as u8;
    bytes.extend([0, name + 1, name]);
    bytes.extend(text.as_bytes());
}

fn files() -> Result<Vec<Vec<u8>>> {
    let read = |name: &&str| {
        let file = target().join("plugins").join(name);
        fs::read(&file).with_context(|| file.display().to_string())
    };
    FILES.iter().map(read).collect()
}

/// The load of datagrams, in a thread of its own.
struct Flows {
    so_far: Arc<Mutex<Exchanges>>,
    stop: Sender<()>,
    thread: thread::JoinHandle<Result<()>>,
}

impl Flows {
    fn start(balancer: SocketAddr, mut reflector: Reflector) -> Result<Self> {
        let (stop, stopped) = channel();
        let (opened, is_open) = channel();
        let so_far = Arc::<Mutex<Exchanges>>::default();
        let counts = Arc::clone(&so_far);
        let thread = thread::spawn(move || {
            datagrams::pin_to_core()?;
            let place = Network::loopback().clients;
            let mut clients =
                Clients::open(&Scenario::THOUSAND, (&place, balancer), &mut reflector)?;
            let _ = opened.send(());
            while stopped.try_recv() == Err(TryRecvError::Empty) {
                let load = clients.trickle(&mut reflector, PAUSE)?;
                let mut counts = counts.lock().expect("nobody panics with this lock");
                counts.complete += load.units as u64;
                counts.lost += load.lost;
            }
            Ok(())
        });
        // Where they could not be opened, the thread says why when it is joined.
        let _ = is_open.recv();
        Ok(Self { so_far, stop, thread })
    }

    /// A window, and what became of the datagrams meanwhile.
    fn beside(&self, window: impl FnOnce() -> Result<Window>) -> Result<Window> {
        let before = self.so_far();
        let window = window()?;
        let after = self.so_far();
        let datagrams = Exchanges {
            complete: after.complete - before.complete,
            lost: after.lost - before.lost,
        };
        Ok(Window { datagrams, ..window })
    }

    fn so_far(&self) -> Exchanges {
        *self.so_far.lock().expect("nobody panics with this lock")
    }

    fn stop(self) -> Result<()> {
        let _ = self.stop.send(());
        self.thread.join().map_err(|_| anyhow!("the load of datagrams panicked"))?
    }
}

/// How to start Pointsman, where it takes datagrams, and where it is spoken to.
fn plan(
    folder: &Path,
    endpoint: &Endpoint,
    reflector: &Reflector,
) -> Result<(Plan, SocketAddr, PathBuf)> {
    let (config, socket) = (folder.join("storm.toml"), folder.join("storm.sock"));
    let place = &Network::loopback().balancers;
    let address = free_address(place, Traffic::Connections)?;
    let datagrams = free_address(place, Traffic::Datagrams)?;
    let listeners = [("web", "tcp", address), ("echo", "udp", datagrams)];
    let listeners = listeners.map(|(name, protocol, address)| {
        format!(
            "[[listeners]]\nname = \"{name}\"\naddress = \"{address}\"\nprotocol = \
             \"{protocol}\"\ncluster = \"{name}\"\nidle_timeout_ms = 600000\n"
        )
    });
    let clusters = [("web", endpoint.address()), ("echo", reflector.address())];
    let clusters = clusters.map(|(name, endpoint)| {
        format!(
            "[[clusters]]\nname = \"{name}\"\npolicy = \"{POLICY}\"\nendpoints = [{{ address = \
             \"{endpoint}\" }}]\n"
        )
    });
    let socket_text = socket.display();
    fs::write(
        &config,
        format!(
            "workers = 1\n[admin]\nsocket = \"{socket_text}\"\n{}{}[[policies]]\nname = \
             \"{POLICY}\"\nplugin = \"p2c.wasm\"\n",
            listeners.concat(),
            clusters.concat()
        ),
    )?;
    let command = run_pointsman(&config)?;
    Ok((Plan { name: "pointsman", address, command }, datagrams, socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_wrk_is_read_in_each_of_its_units() {
        assert_eq!(millis("  500.00us"), Some(0.5));
        assert_eq!(millis("1.25ms"), Some(1.25));
        assert_eq!(millis("2.00s"), Some(2_000.0));
        assert_eq!(millis("soon"), None);
    }

    #[test]
    fn a_section_is_whole() {
        let mut bytes = Vec::new();
        append_section(&mut bytes, 7);
        assert_eq!(bytes, b"\0\x0b\x0astorm00007");
    }
}
