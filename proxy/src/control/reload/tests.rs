//! A policy file that is being written, kept from us, and bad.

use std::fs;

use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::live::testing::shared;
use crate::worker::Command;

use super::*;

/// Who follows a policy file, and what the workers are told.
struct Following {
    directory: TempDir,
    reload: Reload,
    told: mpsc::UnboundedReceiver<Command>,
    now: Instant,
}

impl Following {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("policy.yaml").display().to_string();
        let shared =
            shared(&[("PILLION_POLICY_FILE", &file), ("PILLION_TRUST_DOMAIN", "own.example")]);
        let (tell, told) = mpsc::unbounded_channel();
        let readiness = Readiness::new(Arc::clone(&shared));
        let reload = Reload::new(shared, Workers(vec![tell]), readiness);
        Self { directory, reload, told, now: Instant::now() }
    }

    fn write(&self, text: &str) {
        fs::write(self.directory.path().join("policy.yaml"), text).unwrap();
    }

    /// Whether something is there that may not be whole yet.
    fn looks(&mut self) -> bool {
        self.reload.load_policy(self.now)
    }

    /// Looks until it has stood still.
    fn settles(&mut self) {
        for _ in 0..2 {
            assert!(self.looks(), "it may not be whole yet");
            self.now += STILL_FOR / 2;
        }
        assert!(!self.looks());
    }

    fn in_force(&self) -> Option<String> {
        self.reload.shared.published.policy.load().as_ref().map(|policy| policy.name().to_owned())
    }

    fn is_good(&self) -> bool {
        self.reload.shared.metrics.policy_ok.get() == 1
    }

    fn judged(&mut self) -> usize {
        std::iter::from_fn(|| self.told.try_recv().ok()).count()
    }
}

fn named(name: &str) -> String {
    format!(
        "apiVersion: pillion/v1alpha1\nkind: SidecarPolicy\nmetadata: {{name: {name}}}\n\
         inbound: {{mtls: strict, defaultAction: deny}}\n\
         outbound: {{defaultAction: passthrough}}\n"
    )
}

#[test]
fn what_is_being_written_is_waited_for() {
    let mut following = Following::new();
    following.write(&named("first"));
    assert!(!following.looks(), "there is none that half of this could replace");
    assert_eq!((following.in_force().as_deref(), following.judged()), (Some("first"), 1));
    assert!(!following.looks());
    assert_eq!(following.judged(), 0, "nothing new");

    // Good as it is, and without what is written behind it.
    following.write(&named("half"));
    assert!(following.looks());
    following.now += STILL_FOR;
    following.write(&named("whole"));
    following.settles();
    assert_eq!((following.in_force().as_deref(), following.judged()), (Some("whole"), 1));
}

#[test]
fn what_was_told_to_keep_changing_is_read_once_it_stands_still() {
    let mut following = Following::new();
    following.write(&named("first"));
    assert!(!following.looks());
    let mut number = 0;
    let mut restless = |following: &mut Following| {
        let (all, start) = (200, number);
        while number < start + all {
            number += 1;
            following.write(&named(&format!("change-{number}")));
            if !following.looks() {
                return;
            }
        }
        panic!("{all} changes in a row, and no word of it");
    };
    restless(&mut following);
    assert!(!following.is_good());
    // The very content of the look that was one too many.
    following.settles();
    assert!(following.is_good());
    assert_eq!(following.in_force().as_deref(), Some("change-40"));

    // It is told once, for as long as it goes on.
    restless(&mut following);
    assert!(!following.is_good());
    following.reload.shared.metrics.policy_ok.set(1);
    for number in 0..200 {
        following.write(&named(&format!("more-{number}")));
        assert!(following.looks());
    }
    assert!(following.is_good(), "not told again");
    following.settles();
    assert_eq!(following.in_force().as_deref(), Some("more-199"));
}

#[test]
fn what_could_not_be_read_for_a_moment_is_read_again_though_it_is_the_same() {
    let mut following = Following::new();
    following.write(&named("first"));
    assert!(!following.looks());
    following.write(&named("second"));
    // As if the process had been out of descriptors just when its text was wanted.
    let hash = content_hash(std::slice::from_ref(&following.reload.shared.config.policy_file));
    following.reload.policy_seen = Some(PolicySeen {
        hash,
        unread: Some("too many open files".to_owned()),
        domain: following.reload.own_domain(),
        said: following.now,
    });
    following.settles();
    assert_eq!(following.in_force().as_deref(), Some("second"));
}

#[test]
fn at_the_start_a_bad_policy_is_told_once_in_half_a_minute() {
    let mut following = Following::new();
    following.write("no policy");
    assert!(!following.looks());
    let said = |following: &Following| following.reload.policy_seen.as_ref().unwrap().said;
    let first = said(&following);
    assert!(!following.looks());
    assert_eq!(said(&following), first, "it was just told");
    following.now += REMIND_EVERY - Duration::from_millis(1);
    assert!(!following.looks());
    assert_eq!(said(&following), first, "it is too early");
    following.now += Duration::from_millis(1);
    assert!(!following.looks());
    assert!(said(&following) > first, "told again");
    assert_eq!(following.in_force(), None);
    following.write(&named("good"));
    assert!(!following.looks());
    assert_eq!(following.in_force().as_deref(), Some("good"));
}
