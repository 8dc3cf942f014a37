//! PEM files (RFC 7468), read so that nothing in them is lost in silence.
//!
//! The common reader takes a section where a line begins with its mark, and passes over the rest.
//! Two files put together without a newline between them are one such case: the second one's first
//! section is text behind the first one's end. So each mark is looked for wherever it is, and
//! refused where that reader would not see it. A section that is cut short is another: the next
//! one's BEGIN takes its place.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";

/// Why a file can't be read as PEM. Lines count from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PemFault {
    /// A mark that isn't a line.
    #[error(
        "line {0}: a BEGIN or END mark that is not alone on its line, with five dashes around it; \
         is it indented, or a newline missing between two files?"
    )]
    Mark(usize),
    /// A BEGIN mark within a section, or an END mark that doesn't end the one before it.
    #[error(
        "line {0}: this mark does not fit the one before it: a section is a BEGIN line and, with \
         the same label, an END line; is one of them missing?"
    )]
    Unpaired(usize),
    /// A section that whoever wrote it wants to be read, under a label that isn't.
    #[error("line {0}: {1:?} is not read from this file")]
    Label(usize, String),
    /// The common reader's word.
    #[error("{0}")]
    Broken(String),
}

/// The certificates in a file, in its order; private keys must have been cut out.
///
/// # Errors
/// Those of [`check_marks`], [`PemFault::Label`] for a certificate that would be passed over, and
/// [`PemFault::Broken`].
pub(crate) fn certificates(content: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemFault> {
    check_marks(content)?;
    check_labels(content, is_other_certificate)?;
    CertificateDer::pem_slice_iter(content)
        .collect::<Result<_, _>>()
        .map_err(|error| PemFault::Broken(error.to_string()))
}

/// Whether a label is of a certificate that the common reader passes over, such as OpenSSL's
/// `TRUSTED CERTIFICATE`.
pub(crate) fn is_other_certificate(label: &[u8]) -> bool {
    label != b"CERTIFICATE" && label.trim_ascii().ends_with(b"CERTIFICATE")
}

/// Whether each mark is a line of its own, and each BEGIN has its END before the next one. That the
/// last one has an end is left to the reader.
///
/// # Errors
/// [`PemFault::Mark`] and [`PemFault::Unpaired`].
pub(crate) fn check_marks(content: &[u8]) -> Result<(), PemFault> {
    let (mut at, mut open) = (0, None);
    while let Some((from, line)) = next_line(content, &mut at) {
        let has = |mark: &[u8]| line.windows(mark.len()).any(|window| window == mark);
        if !has(b"-BEGIN ") && !has(b"-END ") {
            continue;
        }
        open = match (label(line, BEGIN), label(line, END), open) {
            (Some(begun), _, None) => Some(begun),
            (_, Some(ended), Some(begun)) if ended == begun => None,
            (None, None, _) => return Err(PemFault::Mark(line_number(content, from))),
            _ => return Err(PemFault::Unpaired(line_number(content, from))),
        };
    }
    Ok(())
}

/// Refuses the first section whose label is one of those `refused`.
///
/// # Errors
/// [`PemFault::Label`].
pub(crate) fn check_labels(
    content: &[u8],
    refused: impl Fn(&[u8]) -> bool,
) -> Result<(), PemFault> {
    sections(content).find(|section| refused(section.label)).map_or(Ok(()), |section| {
        let label = String::from_utf8_lossy(section.label).chars().take(40).collect();
        Err(PemFault::Label(line_number(content, section.from), label))
    })
}

/// From a BEGIN line to its END line.
pub(crate) struct Section<'a> {
    pub(crate) label: &'a [u8],
    /// Between the BEGIN line and the END line; `None` when there is no END line.
    pub(crate) body: Option<&'a [u8]>,
    pub(crate) from: usize,
    pub(crate) until: usize,
}

/// The sections of a PEM file. A line is a boundary where it begins with the mark, as for the
/// reader of certificates.
pub(crate) fn sections(content: &[u8]) -> impl Iterator<Item = Section<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let (from, line) = next_line(content, &mut at)?;
            let Some(label) = label(line, BEGIN) else { continue };
            let start = at;
            while let Some((end, line)) = next_line(content, &mut at) {
                if line.strip_prefix(END).is_some_and(|line| line.starts_with(label)) {
                    return Some(Section { label, body: content.get(start..end), from, until: at });
                }
            }
            return Some(Section { label, body: None, from, until: content.len() });
        }
    })
}

/// The label of a line that is a mark and nothing else.
fn label<'a>(line: &'a [u8], mark: &[u8]) -> Option<&'a [u8]> {
    let label = line.strip_prefix(mark)?.trim_ascii_end().strip_suffix(DASHES)?;
    let is_one = !label.windows(2).any(|pair| pair == b"--");
    is_one.then_some(label)
}

/// The next line and where it begins; lines end with LF, CR or both.
fn next_line<'a>(content: &'a [u8], at: &mut usize) -> Option<(usize, &'a [u8])> {
    let from = *at;
    let rest = content.get(from..).filter(|rest| !rest.is_empty())?;
    let length = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
    let line = rest.get(..length.unwrap_or(rest.len()))?;
    *at = from.saturating_add(line.len()).saturating_add(1).min(content.len());
    Some((from, line))
}

/// As an editor counts: a CR before an LF is part of one end.
fn line_number(content: &[u8], at: usize) -> usize {
    let before = content.get(..at).unwrap_or_default();
    let ends = before.iter().filter(|byte| **byte == b'\n').count();
    let bare = before.windows(2).filter(|pair| pair.starts_with(b"\r") && pair != b"\r\n").count();
    ends.saturating_add(bare).saturating_add(usize::from(before.ends_with(b"\r"))).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "-----BEGIN X-----\nAAAA\n-----END X-----";

    #[test]
    fn a_mark_that_the_common_reader_does_not_see_is_refused() {
        let glued = format!("{ONE}{ONE}\n");
        for (text, line) in [
            (glued.replace("----------", "-----"), 3),
            (glued, 3),
            (format!("{ONE}\n {ONE}\n"), 4),
            (format!("\u{feff}{ONE}\n"), 1),
            (format!("text\r\n\r\n{ONE}x"), 5),
            (format!("text\r\r{ONE}x"), 5),
            (format!("{ONE}\n-{ONE}"), 4),
            (format!("{ONE}\n{}", &ONE[1..]), 4),
            ("-----BEGIN X----\n".to_owned(), 1),
            ("-----END X\n".to_owned(), 1),
        ] {
            assert_eq!(check_marks(text.as_bytes()), Err(PemFault::Mark(line)), "{text:?}");
        }
        for text in ["", "no mark", "C=BEGIN \n END", "-----BEGIN A-B C----- \t\r\n"] {
            assert_eq!(check_marks(text.as_bytes()), Ok(()), "{text:?}");
        }
        assert_eq!(check_marks(format!("{ONE}\r\n\r\n{ONE}").as_bytes()), Ok(()));
    }

    #[test]
    fn a_section_that_another_takes_the_place_of_is_refused() {
        let (begin, end) = ("-----BEGIN X-----\nAAAA", "-----END X-----");
        let other = ONE.replace('X', "Y");
        for (text, line) in [
            // Cut short, and what follows.
            (format!("{begin}\n{ONE}"), 3),
            (format!("{begin}\n{other}\n{ONE}"), 3),
            (format!("{ONE}\n{begin}\n{other}\n{end}"), 6),
            (format!("{begin}\n{}", end.replace('X', "XY")), 3),
            (format!("{begin}\n{}\n{end}", end.replace('X', "Y")), 3),
            (format!("{ONE}\n{end}"), 4),
            (end.to_owned(), 1),
        ] {
            assert_eq!(check_marks(text.as_bytes()), Err(PemFault::Unpaired(line)), "{text:?}");
        }
        assert_eq!(check_marks(begin.as_bytes()), Ok(()), "the reader says what is missing");
        assert!(matches!(certificates(begin.as_bytes()), Err(PemFault::Broken(_))));
    }

    #[test]
    fn a_certificate_of_another_label_is_refused() {
        for label in ["TRUSTED CERTIFICATE", "X509 CERTIFICATE", "CERTIFICATE ", " CERTIFICATE"] {
            let text = format!("{ONE}\n{}", ONE.replace('X', label));
            let refused = certificates(text.as_bytes());
            assert_eq!(refused, Err(PemFault::Label(4, label.to_owned())));
        }
        assert_eq!(certificates(ONE.as_bytes()), Ok(Vec::new()));
    }

    #[test]
    fn a_label_is_refused_with_its_line() {
        let text = format!("{ONE}\n{}", ONE.replace('X', "Y\u{7}"));
        let check = |refused: &'static [u8]| check_labels(text.as_bytes(), move |l| l == refused);
        assert_eq!(check(b"Z"), Ok(()));
        assert_eq!(check(b"X"), Err(PemFault::Label(1, "X".to_owned())));
        let fault = check(b"Y\x07").unwrap_err();
        assert_eq!(fault.to_string(), "line 4: \"Y\\u{7}\" is not read from this file");
    }
}
