//! Polls the reactor for a moment before the worker parks.
//!
//! To sleep and to be woken is dear, above all in a virtual machine: when the next
//! message is a few microseconds away, it is cheaper to wait for it awake. Whether it
//! is so is measured all the time, and the worker waits awake only while that pays: for
//! one or two connections whose next message depends on this one. With more of them
//! there is work in any case, and whoever would send the next message needs the CPU.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::lane::Lane;

/// How long the reactor is polled without anything coming.
const PATIENCE: Duration = Duration::from_micros(50);

/// Connections that are waited for awake.
const FEW: usize = 2;

/// Waits that are looked back at, as the weight of the last one: 1/16.
const MEMORY: i32 = 16;
/// The share of waits that have to pay, of [`WHOLE`].
const WORTHWHILE: i32 = WHOLE / 2;
const WHOLE: i32 = 1 << 12;

/// Bursts that are let pass without waiting awake, after it has not paid.
const PAUSE: u32 = 256;

/// How often waiting awake has paid of late.
#[derive(Debug)]
struct Odds {
    /// Of [`WHOLE`].
    hits: i32,
    pause: u32,
}

impl Odds {
    const fn new() -> Self {
        Self { hits: WHOLE * 3 / 4, pause: 0 }
    }

    /// Whether to try this time.
    fn try_it(&mut self) -> bool {
        if self.pause > 0 {
            self.pause -= 1;
            if self.pause == 0 {
                // A few attempts show whether times have changed.
                self.hits = WORTHWHILE + WHOLE / 8;
            }
            return false;
        }
        true
    }

    fn learn(&mut self, hit: bool) {
        let now = if hit { WHOLE } else { 0 };
        self.hits += (now - self.hits) / MEMORY;
        if self.hits < WORTHWHILE {
            self.pause = PAUSE;
        }
    }
}

/// Whether the quota leaves room for it, and few enough connections are at it.
fn is_wanted(lane: &Lane) -> bool {
    lane.shared.may_busy_poll.load(Ordering::Relaxed) && lane.buffers.recent_borrowers() <= FEW
}

/// Runs for ever beside the connections of a worker.
pub(super) async fn run(lane: Rc<Lane>) {
    let mut odds = Odds::new();
    loop {
        let mut seen = lane.buffers.next_message().await;
        if !is_wanted(&lane) || !odds.try_it() {
            continue;
        }
        let mut since = Instant::now();
        loop {
            // With nothing else to do, the runtime looks at the reactor and comes back.
            tokio::task::yield_now().await;
            // Whoever would send the next message may be waiting for this very CPU.
            std::thread::yield_now();
            let messages = lane.buffers.messages();
            if messages != seen {
                odds.learn(true);
                seen = messages;
                since = Instant::now();
                if !is_wanted(&lane) {
                    break;
                }
            } else if since.elapsed() > PATIENCE {
                odds.learn(false);
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_tried_while_it_pays_and_now_and_then_after_that() {
        let mut odds = Odds::new();
        for _ in 0..1000 {
            assert!(odds.try_it());
            odds.learn(true);
        }
        let mut tries = 0;
        for _ in 0..100_000 {
            if odds.try_it() {
                tries += 1;
                odds.learn(false);
            }
        }
        assert!((100..2_000).contains(&tries), "{tries} of 100000");
        // When it pays again, it is found out.
        let mut tries = 0;
        for _ in 0..10_000 {
            if odds.try_it() {
                tries += 1;
                odds.learn(true);
            }
        }
        assert!(tries > 9_000, "{tries}");
    }

    #[test]
    fn half_is_not_enough_in_the_long_run_and_most_is() {
        let share = |period: u32| {
            let mut odds = Odds::new();
            let mut tries = 0;
            for n in 0..100_000_u32 {
                if odds.try_it() {
                    tries += 1;
                    odds.learn(n % period != 0);
                }
            }
            tries
        };
        assert!(share(10) > 95_000, "nine of ten pay");
    }
}
