//! Tells the story on a terminal, and keeps what was proven.

use std::time::Instant;

use pillion_testbed::Failure;

/// The narrator.
pub(crate) struct Story {
    began: Instant,
    chapter: u32,
    proven: Vec<(&'static str, String)>,
}

impl Story {
    pub(crate) fn begin() -> Self {
        println!(
            "\n  Pillion: two services talk plaintext, the wire carries mTLS, and neither knows."
        );
        Self { began: Instant::now(), chapter: 0, proven: Vec::new() }
    }

    /// A new chapter.
    pub(crate) fn chapter(&mut self, title: &str) {
        self.chapter += 1;
        println!("\n  {}. {title}", self.chapter);
    }

    /// A sentence.
    #[allow(clippy::unused_self, reason = "one way to speak: story.say(...)")]
    pub(crate) fn say(&self, text: &str) {
        for line in text.lines() {
            println!("     {line}");
        }
    }

    /// Something to look at: a command, a rule, bytes.
    #[allow(clippy::unused_self, reason = "one way to speak: story.show(...)")]
    pub(crate) fn show(&self, text: &str) {
        for line in text.lines() {
            println!("       | {line}");
        }
    }

    /// Keeps a claim with what was seen, or stops the tour.
    pub(crate) fn prove(
        &mut self,
        claim: &'static str,
        holds: bool,
        seen: impl Into<String>,
    ) -> Result<(), Failure> {
        let seen = seen.into();
        if !holds {
            return Err(Failure::Unexpected(format!("not proven: {claim} ({seen})")));
        }
        println!("     proven: {claim}");
        self.proven.push((claim, seen));
        Ok(())
    }

    /// The closing table.
    pub(crate) fn end(&self) {
        let width = self.proven.iter().map(|(claim, _)| claim.len()).max().unwrap_or(0);
        println!("\n  What this run has proven, in {:.1} s:\n", self.began.elapsed().as_secs_f64());
        for (claim, seen) in &self.proven {
            println!("    proven  {claim:width$}  {seen}");
        }
        println!("\n  All {} proven.\n", self.proven.len());
    }
}

/// The first bytes as a person likes to see them: hex, and letters where there are any.
pub(crate) fn hexdump(bytes: &[u8], lines: usize) -> String {
    let mut text = String::new();
    for row in bytes.chunks(16).take(lines) {
        let hex: Vec<String> = row.iter().map(|b| format!("{b:02x}")).collect();
        let letters: String = row
            .iter()
            .map(|b| if b.is_ascii_graphic() || *b == b' ' { char::from(*b) } else { '.' })
            .collect();
        text.push_str(&format!("{:47}  {letters}\n", hex.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_shows_hex_and_letters() {
        assert_eq!(hexdump(b"GET\n", 1).trim_end(), format!("{:47}  GET.", "47 45 54 0a"));
        assert_eq!(hexdump(&[0; 64], 2).lines().count(), 2);
    }
}
