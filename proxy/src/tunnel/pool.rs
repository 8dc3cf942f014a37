//! The idle tunnels of one worker.
//!
//! A tunnel that is reused for ever is a decision of kube-proxy's that is kept for
//! ever: whoever dials a Service is sent to one endpoint behind it, and so is each
//! stream of that tunnel. Two things keep the endpoints' shares even. Of the idle
//! tunnels one is picked at random; and each retires after a number of streams
//! that was drawn at its birth, 32 to 96. 60,000 connections are then about 940
//! draws among the endpoints, and with three of them the relative standard
//! deviation of a share is sqrt(2/940) = 4.6%. Sixteen tunnels kept for 1,000
//! streams each would be 60 draws: 18%. A pair of handshakes costs about 350 us,
//! which 64 streams share: 6 us each. The number is drawn, so that tunnels that
//! were born together do not retire together.

use std::collections::HashMap;
use std::hash::Hash;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use fastrand::Rng;

/// What a pool and its tunnels are held to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a tunnel may be idle.
    pub idle: Duration,
    /// How old a tunnel may be and still be given a stream.
    pub age: Duration,
    /// The most streams of one tunnel, whatever `retirement` says.
    pub uses: u32,
    /// How many streams a tunnel carries before it retires: drawn at its birth.
    pub retirement: RangeInclusive<u32>,
    /// The most idle tunnels, of all keys together.
    pub tunnels: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(15),
            age: Duration::from_secs(5 * 60),
            uses: 1_000,
            retirement: 32..=96,
            tunnels: 1_024,
        }
    }
}

impl Limits {
    /// Whether they end a tunnel that has been idle since then.
    fn end(&self, life: Life, since: Instant, now: Instant) -> bool {
        now.saturating_duration_since(since) >= self.idle
            || now.saturating_duration_since(life.born) >= self.age
    }
}

/// When a tunnel was made and how many more streams it may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    born: Instant,
    uses: u32,
    retires: u32,
}

impl Life {
    /// Streams so far, the one that the tunnel was made for included.
    pub fn uses(&self) -> u32 {
        self.uses
    }

    /// When it was made.
    pub fn born(&self) -> Instant {
        self.born
    }
}

/// A tunnel taken from the pool, for one more stream.
#[derive(Debug)]
pub struct Idle<T> {
    /// The tunnel.
    pub item: T,
    /// Its life, in which that stream is counted already. It goes back with it.
    pub life: Life,
}

/// Idle tunnels by where they lead. `K` says all that two streams must have in
/// common to share a tunnel.
#[derive(Debug)]
pub struct Pool<K, T> {
    limits: Limits,
    rng: Rng,
    idle: HashMap<K, Vec<Entry<T>>>,
    /// How many there are in `idle`.
    len: usize,
    /// Found to be too old by [`Pool::take`]; for the caller to close.
    expired: Vec<T>,
}

#[derive(Debug)]
struct Entry<T> {
    item: T,
    life: Life,
    since: Instant,
}

impl<K: Eq + Hash + Clone, T> Pool<K, T> {
    /// An empty pool. `seed` decides every draw.
    pub fn new(limits: Limits, seed: u64) -> Self {
        let rng = Rng::with_seed(seed);
        Self { limits, rng, idle: HashMap::new(), len: 0, expired: Vec::new() }
    }

    /// The life of a tunnel that is made now, for a first stream.
    pub fn birth(&mut self, now: Instant) -> Life {
        let (least, most) = self.limits.retirement.clone().into_inner();
        let drawn = self.rng.u32(least..=most.max(least));
        Life { born: now, uses: 1, retires: drawn.min(self.limits.uses) }
    }

    /// Keeps an idle tunnel. What comes back is to be closed: this one, if it has
    /// retired or is too old, or the one that was idle longest, if there are too
    /// many.
    #[must_use = "what comes back is to be closed"]
    pub fn put(&mut self, key: K, item: T, life: Life, now: Instant) -> Option<T> {
        if life.uses >= life.retires || self.limits.end(life, now, now) {
            return Some(item);
        }
        self.idle.entry(key).or_default().push(Entry { item, life, since: now });
        self.len += 1;
        if self.len > self.limits.tunnels { self.evict() } else { None }
    }

    /// One of the idle tunnels of `key`, at random.
    pub fn take(&mut self, key: &K, now: Instant) -> Option<Idle<T>> {
        let tunnels = self.idle.get_mut(key)?;
        let mut found = None;
        while !tunnels.is_empty() && found.is_none() {
            let Entry { item, life, since } = tunnels.swap_remove(self.rng.usize(..tunnels.len()));
            self.len -= 1;
            if self.limits.end(life, since, now) {
                self.expired.push(item);
            } else {
                found = Some(Idle { item, life: Life { uses: life.uses + 1, ..life } });
            }
        }
        // A key that is not used again must not stay for ever.
        if tunnels.is_empty() {
            self.idle.remove(key);
        }
        found
    }

    /// Every tunnel that has been idle for too long, or is too old; they are to be
    /// closed.
    #[must_use = "what comes back is to be closed"]
    pub fn expire(&mut self, now: Instant) -> Vec<T> {
        let limits = self.limits.clone();
        self.remove(|_, entry| limits.end(entry.life, entry.since, now))
    }

    /// Every tunnel of which `is_stale` says so; they are to be closed.
    #[must_use = "what comes back is to be closed"]
    pub fn retire(&mut self, is_stale: impl Fn(&K, &T) -> bool) -> Vec<T> {
        self.remove(|key, entry| is_stale(key, &entry.item))
    }

    /// Every tunnel; they are to be closed.
    #[must_use = "what comes back is to be closed"]
    pub fn drain(&mut self) -> Vec<T> {
        self.remove(|_, _| true)
    }

    /// How many tunnels are idle. Those that are too old count until they are
    /// asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes out what `ends`, and what [`Pool::take`] has found.
    fn remove(&mut self, mut ends: impl FnMut(&K, &Entry<T>) -> bool) -> Vec<T> {
        let mut removed = std::mem::take(&mut self.expired);
        let found = removed.len();
        self.idle.retain(|key, tunnels| {
            removed.extend(tunnels.extract_if(.., |entry| ends(key, entry)).map(|e| e.item));
            !tunnels.is_empty()
        });
        self.len -= removed.len() - found;
        removed
    }

    /// Takes out the one that was idle longest. It looks at all of them: so many
    /// are idle only after a burst.
    fn evict(&mut self) -> Option<T> {
        let all = self.idle.iter().flat_map(|(key, tunnels)| {
            tunnels.iter().enumerate().map(move |(at, entry)| (entry.since, key, at))
        });
        let (_, key, at) = all.min_by_key(|(since, ..)| *since)?;
        let key = key.clone();
        let tunnels = self.idle.get_mut(&key)?;
        let entry = tunnels.swap_remove(at);
        if tunnels.is_empty() {
            self.idle.remove(&key);
        }
        self.len -= 1;
        Some(entry.item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pool(limits: Limits) -> (Pool<&'static str, u32>, Instant) {
        (Pool::new(limits, 7), Instant::now())
    }

    /// A pool whose tunnels never retire.
    fn lasting() -> (Pool<&'static str, u32>, Instant) {
        pool(Limits { retirement: 1_000..=1_000, ..Limits::default() })
    }

    #[test]
    fn the_default_limits_are_those_of_the_specification() {
        let limits = Limits::default();
        assert_eq!((limits.idle, limits.age), (15 * SECOND, 300 * SECOND));
        assert_eq!((limits.uses, limits.retirement, limits.tunnels), (1_000, 32..=96, 1_024));
    }

    #[test]
    fn a_tunnel_comes_back_for_its_own_key_alone_and_once() {
        let (mut pool, now) = lasting();
        let life = pool.birth(now);
        assert_eq!(pool.put("a", 1, life, now), None);
        assert!(pool.take(&"b", now).is_none());
        let idle = pool.take(&"a", now).unwrap();
        assert_eq!((idle.item, idle.life.uses(), idle.life.born()), (1, 2, now));
        assert!(pool.take(&"a", now).is_none());
        assert!(pool.is_empty() && pool.idle.is_empty(), "no key stays behind");
    }

    #[test]
    fn an_idle_tunnel_is_not_given_out_at_its_limit_and_is_returned_for_closing() {
        let (mut pool, now) = lasting();
        for item in [1, 2] {
            let life = pool.birth(now);
            assert_eq!(pool.put("a", item, life, now + item * SECOND), None);
        }
        assert!(pool.expire(now + 15 * SECOND).is_empty());
        assert_eq!(pool.take(&"a", now + 16 * SECOND).map(|idle| idle.item), Some(2));
        // Whether or not `take` came across it.
        assert_eq!(pool.expire(now + 16 * SECOND), [1]);
        assert!(pool.is_empty() && pool.idle.is_empty());
    }

    #[test]
    fn what_take_finds_too_old_is_returned_for_closing() {
        let (mut pool, now) = lasting();
        let life = pool.birth(now);
        assert_eq!(pool.put("a", 1, life, now), None);
        assert!(pool.take(&"a", now + 15 * SECOND).is_none());
        assert_eq!(pool.len(), 0);
        assert_eq!(pool.drain(), [1]);
        assert!(pool.drain().is_empty());
    }

    #[test]
    fn a_tunnel_of_five_minutes_is_neither_kept_nor_given_out() {
        let (mut pool, now) = lasting();
        let life = pool.birth(now);
        assert_eq!(pool.put("a", 1, life, now + 300 * SECOND), Some(1));
        assert_eq!(pool.put("a", 2, life, now + 299 * SECOND), None);
        assert!(pool.take(&"a", now + 300 * SECOND).is_none());
        assert_eq!(pool.expire(now + 300 * SECOND), [2]);
    }

    #[test]
    fn a_tunnel_carries_the_number_of_streams_that_was_drawn() {
        let (mut pool, now) = pool(Limits::default());
        let mut drawn = std::collections::BTreeSet::new();
        for _ in 0..2_000 {
            let life = pool.birth(now);
            assert_eq!(life.uses(), 1);
            drawn.insert(life.retires);
            let (mut streams, mut back) = (1, pool.put("a", 0, life, now));
            while let Some(idle) = pool.take(&"a", now) {
                streams += 1;
                assert_eq!(idle.life.uses(), streams);
                back = pool.put("a", 0, idle.life, now);
            }
            assert_eq!((streams, back), (life.retires, Some(0)));
        }
        assert_eq!(drawn, (32..=96).collect());
    }

    #[test]
    fn the_hard_limit_of_uses_holds_whatever_is_drawn() {
        let (mut pool, now) = pool(Limits { uses: 3, ..Limits::default() });
        assert_eq!(pool.birth(now).retires, 3);
        let (mut pool, now) = lasting();
        assert_eq!(pool.birth(now).retires, 1_000);
    }

    #[test]
    fn of_too_many_the_longest_idle_goes_whatever_its_key() {
        let (mut pool, now) =
            pool(Limits { tunnels: 3, retirement: 100..=100, ..Limits::default() });
        let life = pool.birth(now);
        for (key, item, at) in [("a", 1, 2), ("b", 2, 1), ("c", 3, 3)] {
            assert_eq!(pool.put(key, item, life, now + at * SECOND), None);
        }
        assert_eq!(pool.put("a", 4, life, now + 4 * SECOND), Some(2));
        assert_eq!(pool.put("a", 5, life, now + 5 * SECOND), Some(1));
        assert_eq!(pool.len(), 3);
        let mut rest = pool.drain();
        rest.sort_unstable();
        assert_eq!(rest, [3, 4, 5]);
    }

    #[test]
    fn a_change_takes_out_what_it_concerns() {
        let (mut pool, now) = lasting();
        for (key, item) in [("a", 1), ("b", 2), ("b", 3)] {
            let life = pool.birth(now);
            assert_eq!(pool.put(key, item, life, now), None);
        }
        assert_eq!(pool.retire(|key, item| *key == "b" && *item == 2), [2]);
        assert_eq!((pool.len(), pool.take(&"b", now).map(|idle| idle.item)), (2, Some(3)));
    }

    #[test]
    fn each_of_the_idle_is_picked_as_often() {
        let (mut pool, now) = lasting();
        let mut picked = [0_u32; 4];
        for item in 0..4 {
            let life = pool.birth(now);
            assert_eq!(pool.put("a", item, life, now), None);
        }
        for _ in 0..40_000 {
            let Idle { item, life } = pool.take(&"a", now).unwrap();
            picked[item as usize] += 1;
            assert_eq!(pool.put("a", item, Life { uses: 1, ..life }, now), None);
        }
        // 10,000 each, with a standard deviation of 87.
        assert!(picked.iter().all(|n| n.abs_diff(10_000) < 5 * 87), "{picked:?}");
    }

    /// The relative standard deviation of one of three endpoints' shares of 60,000
    /// connections, 16 at a time, over 16 runs.
    fn unevenness(retirement: RangeInclusive<u32>) -> f64 {
        let (runs, connections, mean) = (16, 60_000, 20_000.0_f64);
        let now = Instant::now();
        let mut squares = 0.0_f64;
        for seed in 0..runs {
            let mut endpoints = Rng::with_seed(1_000 + seed);
            let limits = Limits { retirement: retirement.clone(), ..Limits::default() };
            let mut pool: Pool<(), usize> = Pool::new(limits, seed);
            let mut shares = [0.0_f64; 3];
            for _ in 0..connections / 16 {
                let open: Vec<_> = (0..16)
                    .map(|_| {
                        pool.take(&(), now).unwrap_or_else(|| Idle {
                            item: endpoints.usize(..3),
                            life: pool.birth(now),
                        })
                    })
                    .collect();
                for Idle { item, life } in open {
                    shares[item] += 1.0;
                    let _ = pool.put((), item, life, now);
                }
            }
            squares += shares.iter().map(|share| ((share - mean) / mean).powi(2)).sum::<f64>();
        }
        (squares / f64::from(u32::try_from(3 * runs).unwrap())).sqrt()
    }

    #[test]
    fn endpoints_behind_one_address_get_even_shares() {
        let (ours, kept) = (unevenness(32..=96), unevenness(1_000..=1_000));
        println!("relative standard deviation of a share: {ours:.3}, kept for long: {kept:.3}");
        assert!((0.035..0.06).contains(&ours), "{ours}");
        assert!(kept > 0.12, "{kept}");
    }
}
