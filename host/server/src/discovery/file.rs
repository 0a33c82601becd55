//! Watches files of endpoints, on a thread of its own: their disk may hang, and they may be large.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Instant;

use pointsman_core::ClusterId;
use tokio::sync::mpsc::UnboundedSender;

use super::Found;
use super::answer::{Answer, Candidate, Failure, LeftOut, Outcome, settle};
use crate::plan::{DiscoveryPlan, read_endpoints};
use crate::settling::{LOOK, Settled, Settling, read_at_most};

/// The largest file: twice what the most endpoints of a cluster take.
const BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Where files can be handed over to be watched.
pub(super) struct FileWatch {
    found: UnboundedSender<Found>,
    /// The thread, once there is a file.
    orders: Option<Sender<Order>>,
    number_next: u64,
}

/// A file that is watched until this is dropped.
pub(super) struct Watch {
    number: u64,
    orders: Option<Sender<Order>>,
}

enum Order {
    Watch(u64, Box<Watched>),
    Leave(u64),
}

impl FileWatch {
    pub(super) fn new(found: UnboundedSender<Found>) -> Self {
        Self { found, orders: None, number_next: 0 }
    }

    /// Reads a file at once, and again whenever it has changed.
    pub(super) fn watch(
        &mut self,
        cluster: ClusterId,
        plan: &Arc<DiscoveryPlan>,
        path: &Path,
    ) -> Watch {
        let number = self.number_next;
        self.number_next += 1;
        if self.orders.is_none() {
            self.orders = match start(self.found.clone()) {
                Ok(orders) => Some(orders),
                Err(error) => {
                    let why = format!("the file cannot be watched: {error}");
                    let said = Err(Failure::new(Outcome::Error, why));
                    let _ = self.found.send(Found { cluster, plan: Arc::clone(plan), said });
                    None
                }
            };
        }
        if let Some(orders) = &self.orders {
            let file = Settling::new(path.to_owned());
            let watched = Watched { cluster, plan: Arc::clone(plan), file, last: None };
            let _ = orders.send(Order::Watch(number, Box::new(watched)));
        }
        Watch { number, orders: self.orders.clone() }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(orders) = &self.orders {
            let _ = orders.send(Order::Leave(self.number));
        }
    }
}

fn start(found: UnboundedSender<Found>) -> io::Result<Sender<Order>> {
    let (orders, ordered) = channel();
    let body = move || watch_for_ever(&ordered, &found);
    thread::Builder::new().name("endpoints-watch".into()).spawn(body)?;
    Ok(orders)
}

/// Ends with whoever gives the orders, or hears what was found.
fn watch_for_ever(ordered: &Receiver<Order>, found: &UnboundedSender<Found>) {
    let mut all: Vec<(u64, Box<Watched>)> = Vec::new();
    let mut look_at = Instant::now() + LOOK;
    while !found.is_closed() {
        match ordered.recv_timeout(look_at.saturating_duration_since(Instant::now())) {
            Ok(Order::Watch(number, mut watched)) => {
                watched.read(found);
                all.push((number, watched));
            }
            Ok(Order::Leave(number)) => all.retain(|(other, _)| *other != number),
            Err(RecvTimeoutError::Timeout) => {
                all.iter_mut().for_each(|(_, watched)| watched.look(found));
                look_at = Instant::now() + LOOK;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

struct Watched {
    cluster: ClusterId,
    plan: Arc<DiscoveryPlan>,
    file: Settling,
    /// What was read last.
    last: Option<Vec<u8>>,
}

impl Watched {
    fn look(&mut self, found: &UnboundedSender<Found>) {
        match self.file.look() {
            Some(Settled::There) => self.read(found),
            Some(Settled::Gone) => {
                self.last = None;
                self.tell(found, Err(Failure::new(Outcome::Error, "there is no such file")));
            }
            None => {}
        }
    }

    fn read(&mut self, found: &UnboundedSender<Found>) {
        match read_at_most(self.file.path(), BYTES_MAX) {
            Ok(bytes) => {
                if self.last.as_ref() != Some(&bytes) {
                    let said = parse(self.file.path(), &bytes, self.plan.endpoints_max);
                    self.last = Some(bytes);
                    self.tell(found, said);
                }
            }
            Err(error) => {
                let why = format!("the file cannot be read: {error}");
                self.tell(found, Err(Failure::new(Outcome::Error, why)));
                self.file.again();
            }
        }
    }

    fn tell(&self, found: &UnboundedSender<Found>, said: Result<Answer, Failure>) {
        let (cluster, plan) = (self.cluster, Arc::clone(&self.plan));
        let _ = found.send(Found { cluster, plan, said });
    }
}

/// What is wrong with a file, if it is there; it may come later.
pub fn mistake(path: &Path, endpoints_max: usize) -> Option<String> {
    match read_at_most(path, BYTES_MAX) {
        Ok(bytes) => parse(path, &bytes, endpoints_max).err().map(|failure| failure.why),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(format!("\"{}\" cannot be read: {error}", path.display())),
    }
}

fn parse(path: &Path, bytes: &[u8], endpoints_max: usize) -> Result<Answer, Failure> {
    let invalid = |why: String| Failure::new(Outcome::Invalid, why);
    if bytes.len() as u64 > BYTES_MAX {
        return Err(invalid(format!("the file has more than {BYTES_MAX} bytes")));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|_| invalid("the file is not UTF-8 text; save it as UTF-8".to_owned()))?;
    let endpoints = read_endpoints(text).map_err(|problems| {
        let first = problems.first().map(|problem| problem.in_file(path)).unwrap_or_default();
        let more = match problems.len() {
            0 | 1 => String::new(),
            count => format!(" (and {} more)", count - 1),
        };
        invalid(first + &more)
    })?;
    let candidates = endpoints.iter().map(|endpoint| Candidate {
        address: endpoint.address,
        weight: endpoint.weight,
        priority: endpoint.backup.into(),
    });
    settle(candidates.collect(), endpoints_max, LeftOut::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Answer, Failure> {
        parse(Path::new("web.toml"), text.as_bytes(), 2)
    }

    #[test]
    fn a_file_says_what_a_cluster_would() {
        let text = "endpoints = [{ address = \"10.0.0.2:1\", weight = 3 },\n\
                    { address = \"10.0.0.1:1\", backup = true }]";
        let found = parsed(text).expect("endpoints").endpoints;
        let told: Vec<_> = found.iter().map(|it| (it.address.ip(), it.weight, it.backup)).collect();
        let ip = |text: &str| text.parse().expect("an address");
        assert_eq!(told, [(ip("10.0.0.1"), 1, true), (ip("10.0.0.2"), 3, false)]);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_with_its_place_and_how_much_more_there_is() {
        let failure =
            parsed("endpoints = [{ adress = 1 }, { address = \"x\" }]").expect_err("wrong");
        assert_eq!(failure.outcome, Outcome::Invalid);
        assert!(failure.why.starts_with("web.toml:1:16: endpoints[0].adress: "), "{failure:?}");
        assert!(failure.why.ends_with("(and 1 more)"), "{failure:?}");
    }

    #[test]
    fn no_bytes_of_a_file_are_taken_for_endpoints_by_mistake() {
        for bytes in [&b"\xff\xfe"[..], b"\0", b"[[endpoints]", b"[]", b"endpoints = 5", b""] {
            let failure = parse(Path::new("x"), bytes, 9).expect_err("it is no such file");
            assert_eq!(failure.outcome, Outcome::Invalid, "{bytes:?}");
        }
    }
}
