//! The sidecar in manifests that somebody wrote.

use pillion_inject::{Diagnostics, Settings, inject, uninject};

/// Injects, injects again, and takes it out.
pub fn check(text: &str) {
    let settings = Settings::default();
    let injected = match inject("f", text, &settings) {
        Ok(injected) => injected.text,
        Err(errors) => return places(text, &errors),
    };
    let again = inject("f", &injected, &settings).expect("what was injected can be again");
    assert_eq!(again.text, injected, "a second run changes nothing");
    let before = uninject("f", text).expect("injection begins with it");
    assert_eq!(uninject("f", &injected).expect("it is ours"), before);
    // What has no record of ours is not changed by taking ours out.
    assert!(text.contains("injected") || text.contains('\\') || before == text);
}

fn places(text: &str, errors: &Diagnostics) {
    assert!(!errors.as_slice().is_empty());
    // A lone CR ends a line, too, so there are at most so many.
    let lines = text.matches(['\r', '\n']).count() + 1;
    for error in errors.as_slice() {
        assert!((1..=lines).contains(&error.line), "{error}");
        assert!(error.caret <= error.source.chars().count(), "{error}");
        assert!(error.message.contains("; "), "{error}");
    }
}
