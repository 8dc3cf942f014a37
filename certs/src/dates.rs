//! Certificate dates: seconds since the Unix epoch, signed, because a certificate may begin before.

use std::time::{Duration, SystemTime};

use rustls_pki_types::UnixTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// RFC 3339 in UTC, or the bare number of seconds where the year has no such form.
pub(crate) fn rfc3339(unix_seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(unix_seconds)
        .ok()
        .and_then(|date| date.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{unix_seconds} s"))
}

pub(crate) fn system_time(unix_seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(unix_seconds.unsigned_abs());
    let shifted = if unix_seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    shifted.unwrap_or(SystemTime::UNIX_EPOCH)
}

pub(crate) fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

/// What is before the epoch is the epoch.
pub(crate) fn unix_time(unix_seconds: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(unix_seconds).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_before_the_epoch_are_before_it() {
        let second = Duration::from_secs(1);
        assert_eq!(system_time(-1), SystemTime::UNIX_EPOCH - second);
        assert_eq!(system_time(0), SystemTime::UNIX_EPOCH);
        assert_eq!(system_time(1), SystemTime::UNIX_EPOCH + second);
        assert_eq!([-1, 0, 1].map(|at| unix_time(at).as_secs()), [0, 0, 1]);
    }

    #[test]
    fn a_year_that_rfc_3339_cannot_write_is_a_number() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(i64::MAX), "9223372036854775807 s");
    }
}
