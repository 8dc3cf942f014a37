//! A relay that breaks what it carries, at the bytes that a test names.
//!
//! It stands in a pod of its own between two sidecars, as a bad network does, and knows nothing of
//! TLS: the server's identity is checked whatever the address it is reached by.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::SockRef;

use crate::script::{Fault, Script, Step};
use crate::stream::End;
use crate::{Failure, Pod, let_pass};

/// So much of each direction is kept to be looked at.
const KEPT: usize = 64 << 10;

/// What is done to a connection; see [`FaultProxy::set`].
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Reset when it is accepted, and the server is not dialled.
    pub refuse: bool,
    /// Done to what the client sends.
    pub up: Vec<Fault>,
    /// Done to what the server sends.
    pub down: Vec<Fault>,
}

impl Plan {
    /// Faults of what the client sends.
    #[must_use]
    pub fn up(faults: &[Fault]) -> Self {
        Self { up: faults.to_vec(), ..Self::default() }
    }

    /// Faults of what the server sends.
    #[must_use]
    pub fn down(faults: &[Fault]) -> Self {
        Self { down: faults.to_vec(), ..Self::default() }
    }
}

/// What the last connection carried, as it came in: the beginning of each direction.
#[derive(Debug, Clone, Default)]
pub struct Carried {
    /// From the client.
    pub up: Vec<u8>,
    /// From the server.
    pub down: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    plan: Mutex<Plan>,
    carried: Mutex<Carried>,
    stopping: AtomicBool,
    cutting: AtomicBool,
}

/// A relay with faults. Dropping it ends what it carries, and waits for its threads.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

impl FaultProxy {
    /// Listens in `pod` on `port` of its IPv4 address, and relays to `upstream` without a fault.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn start(pod: &Pod, port: u16, upstream: SocketAddr) -> Result<Self, Failure> {
        let listener = pod.listen(SocketAddr::new(pod.v4(), port))?;
        let pod = pod.clone();
        Self::between(listener, move || pod.connect(upstream))
    }

    /// The same between a listener, which does not block, and what `connect` connects to.
    ///
    /// # Errors
    /// The listener has gone.
    pub fn between(
        listener: TcpListener,
        connect: impl Fn() -> Result<TcpStream, Failure> + Send + 'static,
    ) -> Result<Self, Failure> {
        let (address, state) = (listener.local_addr()?, Arc::new(State::default()));
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || accept_all(&listener, &connect, &shared));
        Ok(Self { address, state, thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What is done to the connections that are accepted from now on.
    pub fn set(&self, plan: Plan) {
        *lock(&self.state.plan) = plan;
    }

    /// Resets all that is carried now.
    pub fn cut_all(&self) {
        self.state.cutting.store(true, Ordering::Relaxed);
    }

    /// What the connection that was accepted last has carried so far.
    #[must_use]
    pub fn carried(&self) -> Carried {
        lock(&self.state.carried).clone()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.state.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of it has been printed, and the test is over.
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept_all(
    listener: &TcpListener,
    connect: &impl Fn() -> Result<TcpStream, Failure>,
    state: &Arc<State>,
) {
    let mut carrying: Vec<(Arc<Link>, [JoinHandle<()>; 2])> = Vec::new();
    while !state.stopping.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((client, _)) => carrying.extend(begin(client, connect, state)),
            Err(_) => let_pass(Duration::from_millis(1)),
        }
        if state.cutting.swap(false, Ordering::Relaxed) {
            carrying.iter().for_each(|(link, _)| link.break_off());
        }
        carrying.retain(|(_, threads)| threads.iter().any(|thread| !thread.is_finished()));
    }
    for (link, threads) in carrying {
        link.break_off();
        for thread in threads {
            // A panic of it has been printed.
            let _ = thread.join();
        }
    }
}

/// Begins to carry one connection, unless the plan or the server refuses it.
fn begin(
    client: TcpStream,
    connect: &impl Fn() -> Result<TcpStream, Failure>,
    state: &Arc<State>,
) -> Option<(Arc<Link>, [JoinHandle<()>; 2])> {
    let plan = lock(&state.plan).clone();
    *lock(&state.carried) = Carried::default();
    client.set_nonblocking(false).ok()?;
    client.set_nodelay(true).ok()?;
    let server = if plan.refuse { None } else { connect().ok() };
    let Some(server) = server else {
        // Nothing can be done about an error: it is closed either way.
        let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
        return None;
    };
    // A relay waits for as long as its ends do.
    server.set_read_timeout(None).ok()?;
    server.set_write_timeout(None).ok()?;
    let link = Arc::new(Link { client, server, broken: AtomicBool::new(false) });
    let (up, down) = (Script::new(plan.up), Script::new(plan.down));
    let carry = |up: bool, script: Script| {
        let (link, state) = (Arc::clone(&link), Arc::clone(state));
        std::thread::spawn(move || link.carry(up, script, &state))
    };
    let threads = [carry(true, up), carry(false, down)];
    Some((link, threads))
}

/// Both ends of a connection that is carried.
#[derive(Debug)]
struct Link {
    client: TcpStream,
    server: TcpStream,
    broken: AtomicBool,
}

impl Link {
    /// Resets both ends: when the last thread lets go of them.
    fn break_off(&self) {
        self.broken.store(true, Ordering::Relaxed);
        for end in [&self.client, &self.server] {
            // An end that has gone is as it should be. Shutting down reading says nothing to the
            // peer, and wakes the thread that reads.
            let _ = SockRef::from(end).set_linger(Some(Duration::ZERO));
            let _ = end.shutdown(Shutdown::Read);
        }
    }

    /// Carries one direction to its end.
    fn carry(&self, up: bool, mut script: Script, state: &State) {
        let (from, to) =
            if up { (&self.client, &self.server) } else { (&self.server, &self.client) };
        let (mut from, mut buffer) = (from, vec![0; 16 << 10]);
        // What comes after a direction was ended by its script is read, and goes nowhere.
        let mut passes = true;
        loop {
            let read = match from.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return self.break_off(),
                Ok(_) if self.broken.load(Ordering::Relaxed) => return,
                Ok(read) => buffer.get(..read).unwrap_or_default(),
            };
            keep(state, up, read);
            if !passes && read.is_empty() {
                return;
            }
            let steps = if passes { script.next(read) } else { Vec::new() };
            for step in steps {
                match perform(step, to) {
                    Ok(Done::GoOn) => {}
                    Ok(Done::Over) => passes = false,
                    Ok(Done::Reset) | Err(_) => return self.break_off(),
                }
            }
            if read.is_empty() {
                return;
            }
        }
    }
}

enum Done {
    GoOn,
    Over,
    Reset,
}

fn perform(step: Step, mut to: &TcpStream) -> io::Result<Done> {
    match step {
        Step::Send(bytes) => to.write_all(&bytes)?,
        Step::Wait(time) => let_pass(time),
        Step::End(End::Fin) => {
            to.shutdown(Shutdown::Write)?;
            return Ok(Done::Over);
        }
        Step::End(End::Reset) => return Ok(Done::Reset),
        Step::Swallow => return Ok(Done::Over),
    }
    Ok(Done::GoOn)
}

fn keep(state: &State, up: bool, bytes: &[u8]) {
    let mut carried = lock(&state.carried);
    let kept = if up { &mut carried.up } else { &mut carried.down };
    let room = KEPT.saturating_sub(kept.len());
    kept.extend(bytes.iter().take(room));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accept;
    use crate::stream::{pass, read_exactly, read_to_end, reset};

    /// A relay on loopback, and the listener behind it.
    fn relay() -> (FaultProxy, TcpListener) {
        let listen = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        };
        let (front, back) = (listen(), listen());
        let to = back.local_addr().unwrap();
        let proxy = FaultProxy::between(front, move || Ok(TcpStream::connect(to)?)).unwrap();
        (proxy, back)
    }

    fn open(proxy: &FaultProxy, back: &TcpListener) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(proxy.address()).unwrap();
        (client, accept(back).unwrap())
    }

    #[test]
    fn without_a_fault_it_carries_both_directions_and_each_end() {
        let (proxy, back) = relay();
        let (mut client, mut server) = open(&proxy, &back);
        pass(&mut client, &mut server, b"up").unwrap();
        pass(&mut server, &mut client, b"and down").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&mut server).unwrap(), (Vec::new(), End::Fin));
        pass(&mut server, &mut client, b"half-closed").unwrap();
        drop(server);
        assert_eq!(read_to_end(&mut client).unwrap(), (Vec::new(), End::Fin));
        let carried = proxy.carried();
        assert_eq!((&carried.up[..], &carried.down[..]), (&b"up"[..], &b"and downhalf-closed"[..]));

        let (client, mut server) = open(&proxy, &back);
        reset(client).unwrap();
        assert_eq!(read_to_end(&mut server).unwrap(), (Vec::new(), End::Reset));
    }

    #[test]
    fn it_cuts_where_it_is_told() {
        let (proxy, back) = relay();
        for (how, plan) in [End::Fin, End::Reset].map(|how| (how, Fault::Cut { at: 3, how })) {
            proxy.set(Plan::up(&[plan]));
            let (mut client, mut server) = open(&proxy, &back);
            client.write_all(b"abcdef").unwrap();
            let (came, end) = read_to_end(&mut server).unwrap();
            assert_eq!(end, how);
            // A reset may overtake what was sent before it.
            assert!(came == b"abc" || how == End::Reset && came.is_empty(), "{came:?}");
            if how == End::Fin {
                pass(&mut server, &mut client, b"the other direction goes on").unwrap();
            } else {
                assert_eq!(read_to_end(&mut client).unwrap(), (Vec::new(), End::Reset));
            }
        }
    }

    #[test]
    fn it_refuses_and_it_swallows() {
        let (proxy, back) = relay();
        proxy.set(Plan { refuse: true, ..Plan::default() });
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        assert_eq!(read_to_end(&mut client).unwrap(), (Vec::new(), End::Reset));

        proxy.set(Plan::down(&[Fault::Swallow { at: 2 }]));
        let (mut client, mut server) = open(&proxy, &back);
        server.write_all(b"abcdef").unwrap();
        assert_eq!(read_exactly(&mut client, 2).unwrap(), b"ab");
        pass(&mut client, &mut server, b"this direction is well").unwrap();
        drop(server);
        client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let silent = client.read(&mut [0; 1]).unwrap_err().kind();
        assert!(matches!(silent, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silent}");
    }
}
