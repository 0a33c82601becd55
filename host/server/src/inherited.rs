//! Sockets that were open before this process began: a service manager listens in its place, as
//! `sd_listen_fds(3)` has it, and keeps them open while it is started anew.
//!
//! ```text
//!   environment ──▶ Inherited ── deal: whose is each? ──▶ Handed ──▶ listeners, admin interface
//! ```
//!
//! A socket is a listener's (or the admin interface's) by its name, or else by its address. One that is
//! nobody's is a mistake, and starts nothing: whoever has opened it keeps it open, so that its clients
//! would wait for ever for somebody who answers.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use pointsman_core::Protocol;
use pointsman_ring::take_inherited;
use rustix::net::sockopt::{socket_acceptconn, socket_type};
use rustix::net::{SocketAddrUnix, SocketType, getsockname};

use crate::plan::{ListenerPlan, Plan};
use crate::problem::Problem;

/// The number of the first one.
const START: usize = 3;
/// What the admin socket may be called.
const ADMIN: &str = "admin";

/// Sockets of which nobody has said yet whose they are.
#[derive(Debug, Default)]
pub struct Inherited {
    sockets: Vec<Socket>,
}

/// The sockets of everybody who was handed some.
#[derive(Debug)]
pub struct Handed {
    /// By listener: those of its address, at most one for each worker.
    pub listeners: Vec<Vec<OwnedFd>>,
    /// Where the command line talks to.
    pub admin: Option<OwnedFd>,
    /// Where HTTP is served.
    pub http: Option<OwnedFd>,
}

#[derive(Debug)]
struct Socket {
    descriptor: OwnedFd,
    number: usize,
    /// Empty if it has none.
    name: String,
    place: Place,
}

/// What a socket is for, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    Unix(PathBuf),
}

/// Whose a socket is.
enum Owner {
    Listener(usize),
    Admin,
    Http,
}

impl Inherited {
    /// Takes over what the environment announces to this process. To be called before the process opens
    /// anything; the variables stay, and concern no other process.
    ///
    /// # Errors
    /// One line that says what is wrong with the variables or the sockets.
    pub fn from_environment() -> Result<Self, String> {
        let variable = |name: &str| std::env::var(name).ok();
        let names = announced(variable, std::process::id())?;
        let count = u16::try_from(names.len()).map_err(|error| error.to_string())?;
        let descriptors = take_inherited(count).map_err(|error| {
            format!("LISTEN_FDS announces {count} sockets, and they are not all there: {error}")
        })?;
        Self::new(descriptors.into_iter().zip(names))
    }

    fn new(handed: impl Iterator<Item = (OwnedFd, String)>) -> Result<Self, String> {
        let socket = |(number, (descriptor, name))| {
            let place = Place::of(&descriptor)
                .map_err(|told| format!("descriptor {number} was handed over and {told}"))?;
            Ok(Socket { descriptor, number, name, place })
        };
        let sockets: Result<_, String> = (START..).zip(handed).map(socket).collect();
        Ok(Self { sockets: sockets? })
    }

    /// Gives each socket to whom it belongs.
    ///
    /// # Errors
    /// All sockets that are nobody's, or of which somebody has too many.
    pub fn deal(self, plan: &Plan) -> Result<Handed, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut listeners: Vec<Vec<Socket>> = plan.listeners.iter().map(|_| Vec::new()).collect();
        let (mut admin, mut http) = (Vec::new(), Vec::new());
        for socket in self.sockets {
            match socket.owner(plan) {
                Some(Owner::Listener(place)) => listeners[place].push(socket),
                Some(Owner::Admin) => admin.push(socket),
                Some(Owner::Http) => http.push(socket),
                None => problems.push(Problem::from(format!(
                    "{socket} is nobody's; add a listener of this address or name, or hand it over \
                     no longer"
                ))),
            }
        }
        for (place, sockets) in listeners.iter().enumerate() {
            let key = format!("listeners[{place}]");
            let told = unsuitable(sockets, plan.workers);
            problems.extend(told.map(|told| Problem::new(key, told)));
        }
        for (key, sockets) in [("admin.socket", &admin), ("admin.http", &http)] {
            let told = unsuitable(sockets, 1);
            problems.extend(told.map(|told| Problem::new(key, told)));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let descriptors = |sockets: Vec<Socket>| sockets.into_iter().map(|it| it.descriptor);
        Ok(Handed {
            listeners: listeners.into_iter().map(|it| descriptors(it).collect()).collect(),
            admin: descriptors(admin).next(),
            http: descriptors(http).next(),
        })
    }
}

/// Why these cannot all be sockets of one listener, if so.
fn unsuitable(sockets: &[Socket], count_max: usize) -> Option<String> {
    let (first, others) = sockets.split_first()?;
    if let Some(other) = others.iter().find(|other| other.place != first.place) {
        return Some(format!("{first} and {other} are both for it; hand over one address"));
    }
    (sockets.len() > count_max).then(|| {
        let count = sockets.len();
        format!("has {count} sockets and takes at most {count_max}, one for each worker; hand over fewer")
    })
}

impl Socket {
    fn owner(&self, plan: &Plan) -> Option<Owner> {
        let find = |is_it: &dyn Fn(&ListenerPlan) -> bool| {
            let fits = |listener: &ListenerPlan| self.place.is_for(listener.protocol);
            plan.listeners.iter().position(|listener| fits(listener) && is_it(listener))
        };
        let named = find(&|listener| listener.name == self.name);
        let placed = || find(&|listener| self.place.address() == Some(listener.address));
        let listener = named.or_else(placed).map(Owner::Listener);
        listener.or_else(|| match &self.place {
            Place::Unix(path) if *path == plan.admin_socket => Some(Owner::Admin),
            Place::Unix(_) if self.name == ADMIN => Some(Owner::Admin),
            Place::Tcp(address) if plan.admin_http == Some(*address) => Some(Owner::Http),
            _ => None,
        })
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "descriptor {} ({}", self.number, self.place)?;
        if !self.name.is_empty() {
            write!(f, ", named \"{}\"", self.name)?;
        }
        f.write_str(")")
    }
}

impl Place {
    /// What the kernel says of a descriptor.
    fn of(descriptor: &OwnedFd) -> Result<Self, String> {
        let ask = || -> io::Result<_> {
            let kind = socket_type(descriptor)?;
            let listens = kind != SocketType::STREAM || socket_acceptconn(descriptor)?;
            Ok((kind, listens, getsockname(descriptor)?))
        };
        let (kind, listens, address) =
            ask().map_err(|error| format!("is no socket that can be used: {error}"))?;
        if !listens {
            return Err("does not listen; leave Accept=no in the socket's unit".to_owned());
        }
        let path = SocketAddrUnix::try_from(address.clone());
        let path = path.ok().and_then(|unix| Some(unix.path_bytes()?.to_owned()));
        match (kind, SocketAddr::try_from(address), path) {
            (SocketType::STREAM, Ok(address), _) => Ok(Self::Tcp(address)),
            (SocketType::DGRAM, Ok(address), _) => Ok(Self::Udp(address)),
            (SocketType::STREAM, _, Some(path)) => Ok(Self::Unix(OsString::from_vec(path).into())),
            _ => Err("is none of TCP, UDP and a Unix socket with a path".to_owned()),
        }
    }

    fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) | Self::Udp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    fn is_for(&self, protocol: Protocol) -> bool {
        match self {
            Self::Tcp(_) => protocol == Protocol::Tcp,
            Self::Udp(_) => protocol == Protocol::Udp,
            Self::Unix(_) => false,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp {address}"),
            Self::Udp(address) => write!(f, "udp {address}"),
            Self::Unix(path) => write!(f, "unix {}", path.display()),
        }
    }
}

/// The names of the sockets that are announced to the process with this number; empty ones if they have
/// none.
fn announced(
    variable: impl Fn(&str) -> Option<String>,
    process: u32,
) -> Result<Vec<String>, String> {
    let is_meant = variable("LISTEN_PID").is_some_and(|pid| pid.parse() == Ok(process));
    let Some(told) = variable("LISTEN_FDS").filter(|_| is_meant) else { return Ok(Vec::new()) };
    let count = told.parse::<u16>().map_err(|_| {
        format!("LISTEN_FDS is \"{told}\"; say how many sockets are handed over, or unset it")
    })?;
    let Some(names) = variable("LISTEN_FDNAMES").filter(|_| count > 0) else {
        return Ok(vec![String::new(); usize::from(count)]);
    };
    let names: Vec<_> = names.split(':').map(str::to_owned).collect();
    if names.len() != usize::from(count) {
        return Err(format!(
            "LISTEN_FDNAMES names {} sockets and LISTEN_FDS announces {count}; name each, or unset it",
            names.len()
        ));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixListener;

    fn variables<'a>(of: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |name| Some(of.iter().find(|(key, _)| *key == name)?.1.to_owned())
    }

    #[test]
    fn sockets_are_announced_to_one_process_with_a_name_for_each_or_none() {
        let told = [("LISTEN_PID", "7"), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "web:dns")];
        assert_eq!(announced(variables(&told), 7), Ok(vec!["web".to_owned(), "dns".to_owned()]));
        assert_eq!(announced(variables(&told), 8), Ok(Vec::new()));
        assert_eq!(announced(variables(&told[..2]), 7), Ok(vec![String::new(); 2]));
        assert_eq!(announced(variables(&told[1..]), 7), Ok(Vec::new()));
        assert_eq!(announced(variables(&[]), 7), Ok(Vec::new()));
    }

    #[test]
    fn nonsense_in_the_environment_is_told() {
        let told = [("LISTEN_PID", "7"), ("LISTEN_FDS", "x"), ("LISTEN_FDNAMES", "web")];
        assert!(announced(variables(&told), 7).is_err_and(|it| it.contains("LISTEN_FDS is \"x\"")));
        let told = [("LISTEN_PID", "7"), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "web")];
        assert!(announced(variables(&told), 7).is_err_and(|it| it.contains("names 1 sockets")));
    }

    fn plan(text: &str) -> Plan {
        let folders = crate::plan::PluginFolders::new(std::path::Path::new("x.toml"), &[]);
        let document = crate::config::read(text);
        crate::plan::resolve(&document.config, &folders).expect("a plan")
    }

    fn listeners(of: &[(&str, &str, SocketAddr)]) -> Plan {
        let mut text = "workers = 2\n[admin]\nsocket = \"/run/x/admin.sock\"\n".to_owned();
        for (name, protocol, address) in of {
            text += &format!(
                "[[listeners]]\nname = \"{name}\"\nprotocol = \"{protocol}\"\naddress = \"{address}\"\n\
                 cluster = \"c\"\n"
            );
        }
        plan(&(text + "[[clusters]]\nname = \"c\"\nendpoints = [{ address = \"127.0.0.1:9\" }]\n"))
    }

    fn inherited<const N: usize>(sockets: [(OwnedFd, &str); N]) -> Inherited {
        let sockets = sockets.into_iter().map(|(socket, name)| (socket, name.to_owned()));
        Inherited::new(sockets).expect("sockets")
    }

    fn tcp() -> (OwnedFd, SocketAddr) {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let address = socket.local_addr().expect("an address");
        (socket.into(), address)
    }

    fn problems(inherited: Inherited, plan: &Plan) -> Vec<String> {
        let problems = inherited.deal(plan).expect_err("a mistake");
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_socket_is_its_listeners_by_name_or_else_by_address() {
        let ((first, at), (second, _), udp) = (tcp(), tcp(), UdpSocket::bind("127.0.0.1:0"));
        let udp = udp.expect("a socket");
        let udp_at = udp.local_addr().expect("an address");
        let elsewhere = "192.0.2.1:80".parse().expect("an address");
        let plan = listeners(&[
            ("a", "tcp", at),
            ("b", "tcp", elsewhere),
            ("c", "udp", udp_at),
            ("d", "tcp", udp_at),
        ]);
        let sockets = inherited([(first, "pointsman.socket"), (second, "b"), (udp.into(), "b")]);
        let handed = sockets.deal(&plan).expect("all are somebody's");
        let counts: Vec<_> = handed.listeners.iter().map(Vec::len).collect();
        assert_eq!(counts, [1, 1, 1, 0]);
        assert!(handed.admin.is_none() && handed.http.is_none());
    }

    #[test]
    fn the_admin_socket_is_known_by_its_path_or_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        for (named, at) in [("x", &*path), ("admin", std::path::Path::new("/run/other"))] {
            let socket = UnixListener::bind(&path).expect("a socket");
            let plan = Plan { admin_socket: at.to_owned(), ..listeners(&[("a", "tcp", tcp().1)]) };
            let handed = inherited([(socket.into(), named)]).deal(&plan).expect("it is somebody's");
            assert!(handed.admin.is_some());
            std::fs::remove_file(&path).expect("it is there");
        }
    }

    #[test]
    fn sockets_that_are_nobodys_or_too_many_are_told_together() {
        let ((own, at), (other, other_at)) = (tcp(), tcp());
        let plan = listeners(&[("a", "tcp", at)]);
        let copies = [0, 1].map(|_| own.try_clone().expect("a descriptor"));
        let [second, third] = copies;
        let sockets = inherited([(own, ""), (second, ""), (third, "a"), (other, "x")]);
        assert_eq!(
            problems(sockets, &plan),
            [
                format!(
                    "descriptor 6 (tcp {other_at}, named \"x\") is nobody's; add a listener of this \
                     address or name, or hand it over no longer"
                ),
                "listeners[0]: has 3 sockets and takes at most 2, one for each worker; hand over fewer"
                    .to_owned(),
            ]
        );
        let ((first, _), (second, _)) = (tcp(), tcp());
        let told = problems(inherited([(first, "a"), (second, "a")]), &plan);
        assert!(
            told.len() == 1 && told[0].contains("both for it; hand over one address"),
            "{told:?}"
        );
    }

    #[test]
    fn what_does_not_listen_is_refused() {
        let (_listener, address) = tcp();
        let stream = std::net::TcpStream::connect(address).expect("a connection");
        let told = Inherited::new(std::iter::once((stream.into(), String::new())));
        assert!(
            told.is_err_and(|told| told.starts_with("descriptor 3 was handed over and does not"))
        );
        let file = std::fs::File::open("/dev/null").expect("a file");
        let told = Inherited::new(std::iter::once((file.into(), String::new())));
        assert!(told.is_err_and(|told| told.contains("is no socket that can be used")));
    }
}
