//! What ends when, and what is to be said of it when. Pure: whoever has a log and a clock asks.

use std::collections::HashMap;
use std::fmt;

use rustls_pki_types::UnixTime;

use crate::dates::{rfc3339, seconds};
use crate::spiffe::TrustDomain;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// However long something lives, its end is near when it is no further away than this.
const NEAR: i64 = 30 * DAY;

/// What ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// Our own certificate.
    OwnSvid,
    /// The longest-lived authority of a trust domain's bundle, of those that have begun.
    Authority(TrustDomain),
    /// A revocation list, by its issuer's distinguished name.
    RevocationList(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnSvid => write!(f, "our own certificate"),
            Self::Authority(domain) => write!(f, "the last authority of {domain}"),
            Self::RevocationList(issuer) => write!(f, "the revocation list of {issuer}"),
        }
    }
}

/// When something begins and ends, in seconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lifetime {
    /// What it is of.
    pub subject: Subject,
    /// The first second.
    pub from: i64,
    /// The last second.
    pub until: i64,
}

/// What is to be said of a [`Lifetime`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// It hasn't begun: an error, and often a wrong clock.
    Early,
    /// Less than a quarter of it, and less than 30 days, is left: a warning.
    Ending,
    /// It is over: an error.
    Over,
}

/// What there is to say of a lifetime at the time `now`, when `last` was said at its time before.
///
/// A new notice is said at once. The same is repeated each day, and each hour on the last day and
/// once it is an error.
#[must_use]
pub fn notice(lifetime: &Lifetime, now: i64, last: Option<(Notice, i64)>) -> Option<Notice> {
    let left = lifetime.until.saturating_sub(now);
    let near = (lifetime.until.saturating_sub(lifetime.from) / 4).min(NEAR);
    let notice = if left < 0 {
        Notice::Over
    } else if now < lifetime.from {
        Notice::Early
    } else if left < near {
        Notice::Ending
    } else {
        return None;
    };
    let every = if notice == Notice::Ending && left > DAY { DAY } else { HOUR };
    let said = last.is_some_and(|(what, at)| what == notice && now.saturating_sub(at) < every);
    (!said).then_some(notice)
}

/// Remembers what has been said of what.
#[derive(Debug, Default)]
pub struct Notices(HashMap<Lifetime, (Notice, i64)>);

impl Notices {
    /// What there is to say of these lifetimes now, and whole sentences for it. It counts as said.
    /// What isn't among them any more is forgotten.
    pub fn due(&mut self, lifetimes: &[Lifetime], now: UnixTime) -> Vec<(Notice, String)> {
        let now = seconds(now);
        self.0.retain(|known, _| lifetimes.contains(known));
        let mut due = Vec::new();
        for lifetime in lifetimes {
            let last = self.0.get(lifetime).copied();
            if let Some(notice) = notice(lifetime, now, last) {
                self.0.insert(lifetime.clone(), (notice, now));
                due.push((notice, sentence(lifetime, notice)));
            }
        }
        due
    }
}

fn sentence(lifetime: &Lifetime, notice: Notice) -> String {
    let Lifetime { subject, from, until } = lifetime;
    match notice {
        Notice::Early => {
            format!("{subject} is valid only from {}; compare the clocks", rfc3339(*from))
        }
        Notice::Ending => format!("{subject} ends at {}; replace it before", rfc3339(*until)),
        Notice::Over => format!("{subject} has ended at {}; replace it now", rfc3339(*until)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lifetime(from: i64, until: i64) -> Lifetime {
        Lifetime { subject: Subject::OwnSvid, from, until }
    }

    #[test]
    fn what_is_said_when() {
        use Notice::{Early, Ending, Over};
        let year = lifetime(0, 365 * DAY);
        let day = lifetime(0, DAY);
        let hour = lifetime(0, HOUR);
        let end = 365 * DAY;
        for (lifetime, now, last, said) in [
            // A quarter of a year is more than 30 days.
            (&year, end - 31 * DAY, None, None),
            (&year, end - 30 * DAY, None, None),
            (&year, end - 30 * DAY + 1, None, Some(Ending)),
            (&year, end - 29 * DAY, Some((Ending, end - 30 * DAY + 1)), None),
            (&year, end - 29 * DAY + 1, Some((Ending, end - 30 * DAY + 1)), Some(Ending)),
            // The last day.
            (&year, end - DAY, Some((Ending, end - DAY - HOUR)), Some(Ending)),
            (&year, end - HOUR, Some((Ending, end - 2 * HOUR + 1)), None),
            (&year, end - HOUR, Some((Ending, end - 2 * HOUR)), Some(Ending)),
            // A quarter of what is short.
            (&day, 18 * HOUR, None, None),
            (&day, 18 * HOUR + 1, None, Some(Ending)),
            (&hour, 45 * 60, None, None),
            (&hour, 45 * 60 + 1, None, Some(Ending)),
            (&hour, HOUR, Some((Ending, 45 * 60 + 1)), None),
            // Over: at once, then each hour.
            (&hour, HOUR + 1, Some((Ending, HOUR)), Some(Over)),
            (&hour, 2 * HOUR, Some((Over, HOUR + 1)), None),
            (&hour, 2 * HOUR + 1, Some((Over, HOUR + 1)), Some(Over)),
            (&year, end + 9 * DAY, Some((Over, end + 9 * DAY - HOUR)), Some(Over)),
            // Not begun.
            (&lifetime(100, 200), 99, None, Some(Early)),
            (&lifetime(100, 200), 100, Some((Early, 99)), None),
            (&lifetime(100, 200), 100, None, None),
            // Upside down, and at the edges of what a date can be.
            (&lifetime(200, 100), 150, None, Some(Over)),
            (&lifetime(i64::MIN, i64::MAX), 0, None, None),
            (&lifetime(0, i64::MIN), i64::MAX, None, Some(Over)),
        ] {
            let what = format!("{lifetime:?} at {now}, last {last:?}");
            assert_eq!(notice(lifetime, now, last), said, "{what}");
        }
    }

    #[test]
    fn what_was_said_is_remembered_until_it_is_replaced() {
        let at = |s| UnixTime::since_unix_epoch(std::time::Duration::from_secs(s));
        let (old, new) = (lifetime(0, 3600), lifetime(0, 4000));
        let mut notices = Notices::default();
        let said = notices.due(std::slice::from_ref(&old), at(3000));
        assert_eq!(said.len(), 1);
        assert_eq!(said[0].0, Notice::Ending);
        assert_eq!(
            said[0].1,
            "our own certificate ends at 1970-01-01T01:00:00Z; replace it before"
        );
        assert!(notices.due(std::slice::from_ref(&old), at(3010)).is_empty());
        assert_eq!(
            notices.due(&[old.clone(), new.clone()], at(3010)).len(),
            1,
            "the new one alone"
        );
        assert!(notices.due(std::slice::from_ref(&new), at(3020)).is_empty());
        assert_eq!(notices.due(std::slice::from_ref(&old), at(3020)).len(), 1, "it was forgotten");
    }
}
