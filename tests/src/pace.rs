//! Short connections from one pod to another, so many a second and each timed, whatever the last
//! one took: a client who waits for its answer before it asks again would ask least of all when the
//! answers are late.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::{Context, Failure, Pod};

/// No connection takes longer, or it is not served.
const LIMIT: Duration = Duration::from_secs(60);

/// How long each of many connections took.
#[derive(Debug, Clone)]
pub struct Times(Vec<Duration>);

impl Times {
    /// The same, with the shortest first.
    fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// How many there were.
    #[must_use]
    pub fn served(&self) -> usize {
        self.0.len()
    }

    /// What so many of a hundred did not take longer than; 0 when there were none.
    #[must_use]
    pub fn percentile(&self, of_hundred: usize) -> Duration {
        let rank = (self.0.len() * of_hundred).div_ceil(100);
        self.0.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let [median, late, last] = [50, 99, 100].map(|rank| milliseconds(self.percentile(rank)));
        let count = self.served();
        write!(f, "p50 {median:.2} ms, p99 {late:.2} ms, longest {last:.2} ms of {count}")
    }
}

/// A runtime of the thread that it runs on, for sockets of the pod that the thread is in.
///
/// # Errors
/// The kernel refuses.
pub fn runtime() -> Result<Runtime, Failure> {
    Builder::new_current_thread().enable_all().build().context(|| "a runtime")
}

/// Opens `a_second` connections a second from `client` to `listener`, and answers them, for as long
/// as `meanwhile` runs. Each is a question and its FIN, and the answer and its FIN. Returns what
/// `meanwhile` does, and how long each took from its SYN to the last FIN.
///
/// # Errors
/// One was not served, told once `meanwhile` is over; or `meanwhile` fails.
pub fn paced<T>(
    client: &Pod,
    listener: &std::net::TcpListener,
    a_second: u32,
    meanwhile: impl FnOnce() -> Result<T, Failure>,
) -> Result<(T, Times), Failure> {
    let to = listener.local_addr()?;
    let every = Duration::from_secs(1) / a_second.max(1);
    let app = listener.try_clone()?;
    // Dropped when `meanwhile` panics, too.
    let (stop, stopped) = oneshot::channel();
    std::thread::scope(|scope| {
        let load = scope.spawn(move || {
            client.enter(|| runtime()?.block_on(serve_all(app, to, every, stopped)))
        });
        let result = meanwhile();
        // It has ended already where one was not served.
        let _ = stop.send(());
        let times = load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((result?, times?))
    })
}

/// Both apps, until it is stopped and every connection has ended.
async fn serve_all(
    app: std::net::TcpListener,
    to: SocketAddr,
    every: Duration,
    mut stopped: oneshot::Receiver<()>,
) -> Result<Times, Failure> {
    let app = TcpListener::from_std(app)?;
    let (mut asking, mut answering) = (JoinSet::new(), JoinSet::new());
    // One tick that is missed is made up for.
    let mut tick = tokio::time::interval(every);
    let (mut goes_on, mut times) = (true, Vec::new());
    while goes_on || !asking.is_empty() || !answering.is_empty() {
        tokio::select! {
            _ = &mut stopped, if goes_on => goes_on = false,
            _ = tick.tick(), if goes_on => {
                asking.spawn(tokio::time::timeout(LIMIT, ask(to)));
            }
            accepted = app.accept() => {
                answering.spawn(tokio::time::timeout(LIMIT, answer(accepted?.0)));
            }
            Some(asked) = asking.join_next() => {
                let in_time = asked.context(|| "a client")?.context(|| "the answer's end")?;
                times.push(in_time?);
            }
            Some(answered) = answering.join_next() => {
                answered.context(|| "the app")?.context(|| "the question's end")??;
            }
        }
    }
    Ok(Times::new(times))
}

async fn ask(to: SocketAddr) -> Result<Duration, Failure> {
    const QUESTION: &[u8] = b"one of many";
    let start = Instant::now();
    let mut stream = TcpStream::connect(to).await.context(|| format!("connecting to {to}"))?;
    stream.write_all(QUESTION).await.context(|| "a question")?;
    stream.shutdown().await.context(|| "the question's FIN")?;
    let mut came = Vec::new();
    stream.read_to_end(&mut came).await.context(|| "reading the answer")?;
    if came == QUESTION {
        return Ok(start.elapsed());
    }
    Err(Failure::Unexpected(format!("{to}: {} of {} bytes", came.len(), QUESTION.len())))
}

async fn answer(mut stream: TcpStream) -> Result<(), Failure> {
    let mut came = Vec::new();
    stream.read_to_end(&mut came).await.context(|| "reading the question")?;
    stream.write_all(&came).await.context(|| "an answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_times() {
        let times = Times::new((1..=200).rev().map(Duration::from_millis).collect());
        assert_eq!(times.served(), 200);
        for (rank, milliseconds) in [(50, 100), (99, 198), (100, 200), (0, 1)] {
            assert_eq!(times.percentile(rank), Duration::from_millis(milliseconds), "{rank}");
        }
        assert_eq!(Times::new(Vec::new()).percentile(99), Duration::ZERO);
        let shown = times.to_string();
        assert_eq!(shown, "p50 100.00 ms, p99 198.00 ms, longest 200.00 ms of 200");
    }
}
