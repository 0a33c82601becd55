//! What a worker has goes over to another process, or comes from one.
//!
//! The balancer knows what there is and the ring has the descriptors; here they come together. A
//! worker that has given its sockets away goes on with its connections, until it is told to drain.

use pointsman_core::Instant;
use pointsman_core::boundary::ListenerId;
use pointsman_core::handover::{Handed, TakenOver, TakenPort};
use pointsman_ring::GivenListener;
use tokio::sync::oneshot;

use super::{Worker, listen};
use crate::mailbox::{Handover, Unserved};
use crate::sockets::WorkerSocket;

/// Flows and places for kept decisions that are looked at per turn. Few enough that connections wait about
/// a millisecond for it; enough that datagrams, which wait until the last slice, do not wait for many turns
/// of busy connections.
const STEPS_PER_TURN: u32 = 2048;

impl Worker {
    /// No other command is taken until the heir has got what there is, which is a few turns later.
    pub(super) fn begin_handing_over(&mut self, heir: oneshot::Sender<Handover>) {
        self.balancer.begin_handing_over(&mut self.ops);
        self.heir = Some(heir);
    }

    /// Whether somebody waits for what this worker has, and it is not all given away yet. If it is, he
    /// gets it; where nobody waits any more, it is taken back.
    pub(super) fn is_still_handing_over(&mut self, now: Instant) -> bool {
        if let Some(handed) = self.balancer.hand_over(now, STEPS_PER_TURN, &mut self.ops)
            && let Some(heir) = self.heir.take()
        {
            let handover = self.with_sockets(handed);
            if let Err(unheard) = heir.send(handover)
                && let Err(unserved) = self.take_over(now, unheard)
            {
                tracing::error!(%unserved, "what nobody wanted is not taken back");
            }
        }
        self.heir.is_some()
    }

    fn with_sockets(&mut self, handed: Handed) -> Handover {
        let Handed { listeners, ports, flows, kept } = handed;
        let sockets = listeners.into_iter().filter_map(|id| {
            let GivenListener { socket, shared } = self.ring.give_listener(id)?;
            Some((id, WorkerSocket { socket, shared }))
        });
        let sockets = sockets.collect();
        let ports = ports.into_iter();
        let ports = ports.filter_map(|port| Some((port, self.ring.give_port(port.port)?)));
        Handover { sockets, ports: ports.collect(), flows, kept }
    }

    /// Goes on with what there is, whatever of it cannot be served.
    ///
    /// # Errors
    /// A listener's socket is no good here.
    pub(super) fn take_over(
        &mut self,
        now: Instant,
        handover: Handover,
    ) -> Result<TakenOver, Unserved> {
        let Handover { sockets, ports, flows, kept } = handover;
        let mut outcome = Ok(());
        for (id, socket) in sockets {
            outcome = self.take_listener(id, socket).and(outcome);
        }
        let with_socket = ports.into_iter().map(|(port, socket)| (port, Some(socket)));
        let (ports, mut sockets): (Vec<_>, Vec<_>) = with_socket.unzip();
        let handed = Handed { listeners: Vec::new(), ports, flows, kept };
        let (taken, ports) = self.balancer.take_over(now, &handed, &mut self.ops);
        for TakenPort { place, port, kind } in ports {
            if let Some(socket) = sockets[place].take() {
                self.ring.take_port(port, &kind, socket);
            }
        }
        outcome.map(|()| taken)
    }

    /// Serves a listener with this socket. Without it the worker is one of those that have none for
    /// the listener.
    fn take_listener(&mut self, id: ListenerId, socket: WorkerSocket) -> Result<(), Unserved> {
        let Some(listener) = self.balancer.listener_to_serve(id) else { return Ok(()) };
        listen(&mut self.ring, (id, listener), socket).map_err(|error| Unserved {
            listener: listener.name.to_string(),
            told: error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use pointsman_core::boundary::PoolSizes;
    use pointsman_core::policy::{Policy, RoundRobin};
    use pointsman_core::{BalancerConfig, ListenerStats};
    use pointsman_ring::{Clock, RingConfig, bind_tcp, bind_udp};
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::super::{Ended, Parts, spawn};
    use super::*;
    use crate::mailbox::{Address, Command, Mailbox, Renewal, Retired};
    use crate::plan::{Plan, PluginFolders, resolve};
    use crate::world::World;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// Two listeners, `dns` and `web`, with an endpoint each.
    struct Site {
        plan: Plan,
        dns: SocketAddr,
        web: SocketAddr,
        endpoint: UdpSocket,
        server: TcpListener,
    }

    impl Site {
        /// The site, and the listeners' sockets.
        fn new() -> (Self, Vec<Option<WorkerSocket>>) {
            let any = "127.0.0.1:0".parse().expect("an address");
            let dns = UdpSocket::from(bind_udp(any).expect("bind"));
            let web = TcpListener::from(bind_tcp(any, 100).expect("bind"));
            let (endpoint, server) = (peer(), TcpListener::bind(any).expect("bind"));
            let text = format!(
                "workers = 1\n\
                 [[listeners]]\nname = \"dns\"\nprotocol = \"udp\"\ncluster = \"dns\"\n\
                 address = \"{}\"\n[[listeners]]\nname = \"web\"\ncluster = \"web\"\n\
                 address = \"{}\"\n[[clusters]]\nname = \"dns\"\n\
                 endpoints = [{{ address = \"{}\" }}]\n[[clusters]]\nname = \"web\"\n\
                 endpoints = [{{ address = \"{}\" }}]\n",
                address(dns.local_addr()),
                address(web.local_addr()),
                address(endpoint.local_addr()),
                address(server.local_addr()),
            );
            let plan = resolve(&crate::config::read(&text).config, &PluginFolders::default());
            let site = Self {
                plan: plan.expect("a plan"),
                dns: address(dns.local_addr()),
                web: address(web.local_addr()),
                endpoint,
                server,
            };
            let socket = |socket: OwnedFd| Some(WorkerSocket { socket, shared: false });
            (site, vec![socket(dns.into()), socket(web.into())])
        }

        /// The client asks and is answered. Tells from which port the endpoint was asked.
        fn exchange(&self, client: &UdpSocket, question: &[u8]) -> SocketAddr {
            client.send_to(question, self.dns).expect("send");
            let port = self.asked(question);
            self.endpoint.send_to(b"answer", port).expect("send");
            assert_eq!(received(client), (b"answer".to_vec(), self.dns));
            port
        }

        /// The endpoint is asked this.
        fn asked(&self, question: &[u8]) -> SocketAddr {
            let (bytes, port) = received(&self.endpoint);
            assert_eq!(bytes, question);
            port
        }

        /// A client has sent something to the server.
        fn accept(&self) -> TcpStream {
            let (mut stream, _) = self.server.accept().expect("accept");
            stream.set_read_timeout(Some(PATIENCE)).expect("option");
            hears(&mut stream);
            stream
        }
    }

    fn address(told: std::io::Result<SocketAddr>) -> SocketAddr {
        told.expect("an address")
    }

    fn peer() -> UdpSocket {
        let peer = UdpSocket::bind("127.0.0.1:0").expect("bind");
        peer.set_read_timeout(Some(PATIENCE)).expect("option");
        peer
    }

    fn received(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
        let mut bytes = vec![0; 64];
        let (len, from) = socket.recv_from(&mut bytes).expect("a datagram");
        bytes.truncate(len);
        (bytes, from)
    }

    fn connect(to: SocketAddr) -> TcpStream {
        let stream = TcpStream::connect(to).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("option");
        stream
    }

    fn says(stream: &mut TcpStream) {
        stream.write_all(b"x").expect("send");
    }

    fn hears(stream: &mut TcpStream) {
        stream.read_exact(&mut [0]).expect("a byte");
    }

    /// A worker that runs, alone in its world.
    struct Running {
        world: World,
        address: Address,
        endings: UnboundedReceiver<Ended>,
        _retired: UnboundedReceiver<Retired>,
    }

    impl Running {
        fn start(site: &Site, sockets: Vec<Option<WorkerSocket>>) -> Self {
            let world = World::new(&site.plan, &[site.dns, site.web], [0; 2]);
            let (retired, retired_end) = unbounded_channel();
            let (commands, mailbox) = Mailbox::new(retired);
            let (started, answer) = oneshot::channel();
            let (ended, endings) = unbounded_channel();
            spawn(parts(&world, sockets, mailbox), started, ended).expect("a thread");
            let waker = answer.blocking_recv().expect("an answer").expect("it starts");
            let address = Address::new(commands, waker);
            Self { world, address, endings, _retired: retired_end }
        }

        fn hand_over(&self) -> Handover {
            let (heir, handover) = oneshot::channel();
            assert!(self.address.post(Command::HandOver(heir)));
            handover.blocking_recv().expect("what it has")
        }

        fn take_over(&self, handover: Handover) -> TakenOver {
            let (reply, taken) = oneshot::channel();
            let handover = Box::new(handover);
            assert!(self.address.post(Command::TakeOver { handover, reply }));
            taken.blocking_recv().expect("an answer").expect("all of it")
        }

        /// What it has counted of `dns`.
        fn stats(&self) -> ListenerStats {
            let (reply, stats) = oneshot::channel();
            assert!(self.address.post(Command::Report(reply)));
            stats.blocking_recv().expect("an answer").stats.listeners.swap_remove(0)
        }

        /// Lets it finish what it has. Tells what it has counted of `dns`.
        fn drain(mut self, let_go: impl FnOnce()) -> ListenerStats {
            self.world.drain(Clock.now() + PATIENCE);
            assert!(self.address.post(Command::Apply(self.world.snapshot())));
            let_go();
            let ended = self.endings.blocking_recv().expect("it ends");
            ended.outcome.expect("it has not failed").stats.listeners.swap_remove(0)
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.address.post(Command::Stop);
        }
    }

    fn parts(world: &World, sockets: Vec<Option<WorkerSocket>>, mailbox: Mailbox) -> Parts {
        let pools = PoolSizes { small: 64, bulk: 4 };
        let snapshot = world.snapshot();
        let ports_max = snapshot.listeners.iter().map(|it| it.datagrams.ports_max).sum();
        let policy = || Box::new(RoundRobin::new()) as Box<dyn Policy>;
        Parts {
            number: 0,
            core: None,
            ring: RingConfig {
                links_max: 32,
                listeners_max: 2,
                ports_max,
                buffers: pools,
                datagram_buffers: 64,
            },
            balancer: BalancerConfig {
                worker: 0,
                sessions_max: 16,
                datagram_flows_max: 64,
                // It takes several turns to look at them.
                flow_table_entries_max: 100_000,
                board: None,
                pools,
                hash_key: [0; 2],
                seed: 0,
                record_flows: false,
            },
            snapshot,
            policies: vec![policy(), policy()],
            sockets,
            engine: None,
            mailbox,
            log: None,
        }
    }

    #[test]
    fn another_worker_goes_on_with_everything_but_connections() {
        let (site, sockets) = Site::new();
        let client = peer();
        let mut first = Running::start(&site, sockets);
        let port = site.exchange(&client, b"one");
        let mut old = connect(site.web);
        says(&mut old);
        let mut old_server = site.accept();
        for round in 0..10_u8 {
            let handover = first.hand_over();
            assert_eq!((handover.sockets.len(), handover.ports.len()), (2, 1));
            client.send_to(&[round], site.dns).expect("send");
            site.endpoint.send_to(b"late", port).expect("send");
            let mut young = connect(site.web);
            says(&mut young);
            let second = Running::start(&site, vec![None, None]);
            assert_eq!(second.take_over(handover).flows, 1);
            assert_eq!(site.asked(&[round]), port, "its port is the same");
            assert_eq!(received(&client).0, b"late");
            assert_eq!(site.exchange(&client, b"more"), port);
            let mut young_server = site.accept();
            says(&mut old_server);
            hears(&mut old);
            let counted = std::mem::replace(&mut first, second).drain(|| {
                says(&mut old_server);
                hears(&mut old);
                drop((old, old_server));
            });
            assert_eq!((counted.handed_over_total, counted.flows_active), (1, 0));
            says(&mut young_server);
            hears(&mut young);
            (old, old_server) = (young, young_server);
        }
        assert_eq!(first.stats().taken_over_total, 1);
    }

    #[test]
    fn what_goes_back_to_the_worker_that_had_it_goes_on_as_before() {
        let (site, sockets) = Site::new();
        let client = peer();
        let worker = Running::start(&site, sockets);
        let port = site.exchange(&client, b"one");
        let handover = worker.hand_over();
        client.send_to(b"two", site.dns).expect("send");
        assert_eq!(worker.take_over(handover).flows, 1);
        assert_eq!(site.asked(b"two"), port);
        assert_eq!(site.exchange(&client, b"three"), port);
        says(&mut connect(site.web));
        drop(site.accept());
    }

    #[test]
    fn a_listener_whose_socket_is_no_good_ends_once() {
        let (site, mut sockets) = Site::new();
        sockets[0] = None;
        let worker = Running::start(&site, sockets);
        let unfit = bind_tcp("127.0.0.1:0".parse().expect("an address"), 1).expect("bind");
        let renewal = Renewal {
            snapshot: worker.world.snapshot(),
            policies: Vec::new(),
            sockets: vec![(ListenerId(0), WorkerSocket { socket: unfit, shared: false })],
            engine: None,
        };
        assert!(worker.address.post(Command::Renew(Box::new(renewal))));
        worker.stats();
        let sockets_open = worker.world.snapshot().listeners[0].sockets_open.clone();
        assert_eq!(sockets_open.get(), 1, "it is one of those that may have it");
        worker.drain(|| {});
        assert_eq!(sockets_open.get(), 0);
    }

    #[test]
    fn what_nobody_waits_for_is_taken_back_at_once() {
        let (site, sockets) = Site::new();
        let client = peer();
        let worker = Running::start(&site, sockets);
        let port = site.exchange(&client, b"one");
        let (heir, gone) = oneshot::channel();
        drop(gone);
        assert!(worker.address.post(Command::HandOver(heir)));
        assert_eq!(site.exchange(&client, b"two"), port);
        let stats = worker.stats();
        assert_eq!((stats.handed_over_total, stats.taken_over_total), (1, 1));
        says(&mut connect(site.web));
        drop(site.accept());
    }
}
