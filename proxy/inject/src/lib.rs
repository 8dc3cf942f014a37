//! Writes the Pillion sidecar into Kubernetes manifests, and out of them again.
//!
//! Everything else in them stays as it is, byte for byte: comments, order, quotes, line ends. The
//! rooms, top to bottom:
//!
//! * `cli`: flags, variables, files, exit codes;
//! * `krm`: errors as a KRM function reports them;
//! * `inject`, `uninject`: what has to change in each pod;
//! * `checks`, `resources`, `probes`, `layers`: what refuses a pod, what the kubelet asks, options of
//!   one pod;
//! * `sidecar`, `record`: what is added, and what remembers what was there;
//! * `options`, `syntax`: every option and what its value has to be;
//! * `manifest`, `unknown`: where the pods are, and where others are that get no sidecar;
//! * `edit`, `emit`, `tree`: the text itself;
//! * `diagnostic`: what is wrong, where, and what cures it.

mod checks;
pub mod cli;
mod diagnostic;
mod edit;
mod emit;
mod inject;
mod krm;
mod layers;
mod manifest;
mod options;
mod probes;
mod record;
mod resources;
mod sidecar;
mod syntax;
mod tree;
mod uninject;
mod unknown;

pub use diagnostic::{Diagnostic, Diagnostics, Kind, Resource, Severity};
pub use krm::{is_resource_list, refusal};
pub use layers::FUNCTION_KIND;
pub use manifest::kinds;
pub use options::{ANNOTATION_PREFIX, ENV_PREFIX, OPTIONS, Opt, Settings, find};
pub use record::RECORD;
pub use tree::MAX_BYTES;

/// A text with its sidecars.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injected {
    /// The manifests.
    pub text: String,
    /// What their author should know, in the file's order; at most 100.
    pub warnings: Vec<Diagnostic>,
}

/// Puts the sidecar into every pod of `text`, which may have many documents; `file` is for
/// messages. Sidecars that are there already are put in anew, so a second run changes nothing.
///
/// # Errors
/// Everything that is wrong with the manifests, each with its place. Nothing is changed then.
pub fn inject(file: &str, text: &str, settings: &Settings) -> Result<Injected, Diagnostics> {
    let (after, found) =
        inject::inject(text, settings).map_err(|found| diagnostic::errors(file, text, found))?;
    Ok(Injected { text: after, warnings: diagnostic::placed(file, text, found) })
}

/// Takes every sidecar of ours out of `text`. Of what [`inject`] made this is the original.
///
/// # Errors
/// As [`inject`]; also where a record does not fit the pod that has it.
pub fn uninject(file: &str, text: &str) -> Result<String, Diagnostics> {
    let clean = uninject::clean(text);
    clean.map(|edited| edited.text).map_err(|found| diagnostic::errors(file, text, found))
}

/// The bytes of a file as text.
///
/// # Errors
/// Where they are no UTF-8.
pub fn decode<'b>(file: &str, bytes: &'b [u8]) -> Result<&'b str, Diagnostics> {
    str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        let before = bytes.get(..at).and_then(|before| str::from_utf8(before).ok());
        let message = "this is no UTF-8; convert the file";
        let finding = diagnostic::Finding::new(Kind::YamlSyntax, at, message);
        diagnostic::errors(file, before.unwrap_or_default(), vec![finding])
    })
}
