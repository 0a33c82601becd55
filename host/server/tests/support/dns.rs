//! A name server that answers as the test says, over UDP and TCP.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

use super::{GIVE_UP, eventually};

/// How it behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// It says what it knows.
    Answers,
    /// It says so over TCP, and over UDP that there is more than fits.
    Truncates,
    /// It says that it cannot.
    ServFail,
    /// It sends bytes that mean nothing.
    Babbles,
    /// It says nothing at all.
    Silent,
}

/// A running name server; it ends when this is dropped.
pub struct NameServer {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    zone: Mutex<Zone>,
    asked: AtomicUsize,
    asked_by_tcp: AtomicUsize,
    ended: AtomicBool,
}

struct Zone {
    mood: Mood,
    ttl: u32,
    records: BTreeMap<Name, Vec<RData>>,
    /// What it cannot say anything about.
    failing: BTreeSet<(Name, RecordType)>,
}

impl NameServer {
    /// Starts one that knows no names.
    pub fn start() -> Self {
        let mut sockets = None;
        eventually("a port is free for both", || {
            sockets = bind().ok();
            sockets.is_some()
        });
        let (udp, tcp) = sockets.expect("sockets");
        let address = udp.local_addr().expect("its address");
        let (records, failing) = (BTreeMap::new(), BTreeSet::new());
        let zone = Mutex::new(Zone { mood: Mood::Answers, ttl: 0, records, failing });
        let shared = Arc::new(Shared {
            zone,
            asked: AtomicUsize::new(0),
            asked_by_tcp: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
        let (one, other) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            thread::spawn(move || one.serve_udp(&udp)),
            thread::spawn(move || other.serve_tcp(&tcp)),
        ];
        Self { address, shared, threads }
    }

    /// From now on it behaves like this.
    pub fn set_mood(&self, mood: Mood) {
        self.shared.zone().mood = mood;
    }

    /// From now on its records hold for so many seconds.
    pub fn set_ttl(&self, seconds: u32) {
        self.shared.zone().ttl = seconds;
    }

    /// From now on a name has these records; none at all means that the name is there without any.
    pub fn set(&self, name: &str, records: Vec<RData>) {
        self.shared.zone().records.insert(name_of(name), records);
    }

    /// From now on it says that it cannot, when it is asked for a name's records of this type.
    pub fn fail(&self, name: &str, of: RecordType) {
        self.shared.zone().failing.insert((name_of(name), of));
    }

    /// From now on there is no such name.
    pub fn remove(&self, name: &str) {
        self.shared.zone().records.remove(&name_of(name));
    }

    /// Questions so far.
    pub fn asked(&self) -> usize {
        self.shared.asked.load(SeqCst)
    }

    /// Questions over TCP so far.
    pub fn asked_by_tcp(&self) -> usize {
        self.shared.asked_by_tcp.load(SeqCst)
    }

    /// Waits until it has been asked so many times more.
    pub fn await_questions(&self, count: usize) {
        let from = self.asked();
        eventually("it is asked again", || self.asked() >= from + count);
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.shared.ended.store(true, SeqCst);
        // Gets the thread out of its accept.
        let is_woken = TcpStream::connect(self.address).is_ok();
        for thread in self.threads.drain(..).filter(|_| is_woken) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn zone(&self) -> MutexGuard<'_, Zone> {
        self.zone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve_udp(&self, socket: &UdpSocket) {
        let mut bytes = [0; 4096];
        while !self.ended.load(SeqCst) {
            let Ok((count, from)) = socket.recv_from(&mut bytes) else { continue };
            self.asked.fetch_add(1, SeqCst);
            if let Some(answer) = self.zone().answer(&bytes[..count], true) {
                let _ = socket.send_to(&answer, from);
            }
        }
    }

    fn serve_tcp(&self, listener: &TcpListener) {
        for stream in listener.incoming().flatten() {
            if self.ended.load(SeqCst) {
                return;
            }
            let _ = stream.set_read_timeout(Some(GIVE_UP));
            let _ = self.serve_stream(stream);
        }
    }

    fn serve_stream(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut bytes = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut bytes)?;
        self.asked_by_tcp.fetch_add(1, SeqCst);
        let Some(answer) = self.zone().answer(&bytes, false) else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        stream.write_all(&length.to_be_bytes())?;
        stream.write_all(&answer)
    }
}

impl Zone {
    /// Every answer begins with another record, as with servers that spread load by that.
    fn answer(&mut self, question: &[u8], is_datagram: bool) -> Option<Vec<u8>> {
        let asked = Message::from_vec(question).ok()?;
        let query = asked.queries.first()?.clone();
        let mut answer = Message::response(asked.metadata.id, OpCode::Query);
        answer.add_query(query.clone());
        answer.metadata.recursion_available = true;
        match self.mood {
            Mood::Silent => return None,
            // The right number, so that the rest is looked at.
            Mood::Babbles => return Some([&question[..2], &[0xff; 30]].concat()),
            Mood::ServFail => answer.metadata.response_code = ResponseCode::ServFail,
            _ if self.failing.contains(&(query.name().clone(), query.query_type())) => {
                answer.metadata.response_code = ResponseCode::ServFail;
            }
            Mood::Truncates if is_datagram => answer.metadata.truncation = true,
            Mood::Answers | Mood::Truncates => match self.records.get_mut(query.name()) {
                None => answer.metadata.response_code = ResponseCode::NXDomain,
                Some(records) => {
                    let turn = records.len().min(1);
                    records.rotate_left(turn);
                    let wanted = records.iter().filter(|it| it.record_type() == query.query_type());
                    let name = query.name();
                    answer.add_answers(
                        wanted.map(|it| Record::from_rdata(name.clone(), self.ttl, it.clone())),
                    );
                }
            },
        }
        answer.to_vec().ok()
    }
}

fn bind() -> io::Result<(UdpSocket, TcpListener)> {
    let tcp = TcpListener::bind("127.0.0.1:0")?;
    let udp = UdpSocket::bind(tcp.local_addr()?)?;
    udp.set_read_timeout(Some(Duration::from_millis(50)))?;
    Ok((udp, tcp))
}

fn name_of(name: &str) -> Name {
    let mut name = Name::from_ascii(name).expect("a name");
    name.set_fqdn(true);
    name
}

/// The records of these addresses.
pub fn hosts(addresses: &[SocketAddr]) -> Vec<RData> {
    addresses.iter().map(|address| host(address.ip())).collect()
}

/// The record of this address.
pub fn host(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

/// The record of a service.
pub fn service(priority: u16, weight: u16, port: u16, target: &str) -> RData {
    RData::SRV(SRV::new(priority, weight, port, name_of(target)))
}
