//! The command line: flags and variables, files, and exit codes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::diagnostic::Diagnostics;
use crate::options::{ENV_PREFIX, OPTIONS, Opt, Settings, nearest};
use crate::tree::MAX_BYTES;
use crate::{decode, inject, is_resource_list, refusal, uninject};

/// Every exit code and its meaning, as `--help` and the documentation have it.
pub const EXIT_CODES: &[(u8, &str)] = &[
    (0, "the manifests are written"),
    (1, "a manifest is refused, and nothing is written"),
    (2, "a flag or variable cannot be used, a file cannot be read, or the output not be written"),
];
const EXIT_REFUSED: u8 = 1;
const EXIT_USAGE: u8 = 2;

/// The flags that are no options: they have no variable and no annotation.
pub const SWITCHES: &[(&str, &str)] = &[
    ("uninject", "Take the sidecar out instead"),
    ("strict", "Refuse the manifests for warnings, too"),
];

/// The name of standard input in messages.
const STDIN: &str = "<stdin>";

/// The command line.
#[must_use]
pub fn command() -> Command {
    let mut codes = String::from("Exit codes:\n");
    for (code, meaning) in EXIT_CODES {
        codes.push_str(&format!("  {code}  {meaning}\n"));
    }
    let switch = |&(name, help): &(&'static str, &'static str)| {
        Arg::new(name).long(name).help(help).action(ArgAction::SetTrue)
    };
    let files = Arg::new("file")
        .value_name("FILE")
        .num_args(0..)
        .help("Manifests, YAML or JSON; - or none for standard input");
    Command::new("pillion-inject")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Writes the Pillion sidecar into Kubernetes manifests")
        .long_about(
            "Writes the Pillion sidecar into Kubernetes manifests.\n\n\
             Reads files or standard input and writes to standard output; everything but the \
             sidecar stays as it is, byte for byte. A second run changes nothing. Works as a \
             Helm post-renderer and as a KRM function of kustomize. Every option can be set by \
             its environment variable, and for one pod by its annotation: an annotation wins over \
             a flag, and a flag over a variable.",
        )
        .arg(files)
        .args(SWITCHES.iter().map(switch))
        .args(OPTIONS.iter().map(argument))
        .after_help(codes)
}

fn argument(option: &'static Opt) -> Arg {
    let default = if option.default.is_empty() { "none" } else { option.default };
    let words = match option.words() {
        [] => String::new(),
        words => format!(" [{}]", words.join(", ")),
    };
    let variable = option.variable();
    let help = format!("{}{words} [default: {default}] [env: {variable}]", option.help);
    Arg::new(option.name).long(option.name).value_name(option.syntax.name()).help(help)
}

/// The variables of this process; what is not UTF-8 is replaced, so that it fails its own check.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub fn environment() -> BTreeMap<String, String> {
    let text = |bytes: OsString| bytes.to_string_lossy().into_owned();
    std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect()
}

/// Runs; standard input and both outputs come as arguments. Returns a code of [`EXIT_CODES`].
pub fn run(
    matches: &ArgMatches,
    environment: &BTreeMap<String, String>,
    input: &mut dyn Read,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    // A closed standard error must not keep the manifests from being written.
    let mut say = |line: &dyn std::fmt::Display| drop(writeln!(err, "pillion-inject: {line}"));
    let (settings, warnings) = match settings(matches, environment) {
        Ok(settings) => settings,
        Err(problems) => {
            problems.iter().for_each(|problem| say(problem));
            return EXIT_USAGE;
        }
    };
    warnings.iter().for_each(|warning| say(warning));
    let files = matches.get_many::<String>("file").into_iter().flatten();
    let mut files: Vec<&str> = files.map(String::as_str).collect();
    if files.is_empty() {
        files.push("-");
    }
    let mut output = String::new();
    let mut refused = None;
    for file in files {
        let bytes = match read(file, input) {
            Ok(bytes) => bytes,
            Err(problem) => {
                say(&problem);
                return EXIT_USAGE;
            }
        };
        let name = if file == "-" { STDIN } else { file };
        match convert(name, &bytes, matches, &settings) {
            Ok((text, warnings)) => {
                warnings.iter().for_each(|warning| say(warning));
                append(&mut output, &text);
            }
            Err((errors, answer)) => {
                say(&errors);
                refused = Some(answer);
            }
        }
    }
    // A KRM function's errors are its output; of nothing else is there any.
    let text = refused.as_ref().unwrap_or(&output);
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        say(&format!("cannot write the manifests: {error}; give the command an open output"));
        return EXIT_USAGE;
    }
    if refused.is_some() { EXIT_REFUSED } else { 0 }
}

type Converted = Result<(String, Vec<String>), (Diagnostics, String)>;

/// The new text and warnings; or the errors, and what to print in the manifests' place.
fn convert(file: &str, bytes: &[u8], matches: &ArgMatches, settings: &Settings) -> Converted {
    let text = decode(file, bytes).map_err(|errors| (errors, String::new()))?;
    let result = if matches.get_flag("uninject") {
        uninject(file, text).map(|text| (text, Vec::new()))
    } else {
        inject(file, text, settings).and_then(|injected| {
            match Diagnostics::of_warnings(&injected.warnings) {
                Some(errors) if matches.get_flag("strict") => Err(errors),
                _ => {
                    let warnings = injected.warnings.iter().map(ToString::to_string).collect();
                    Ok((injected.text, warnings))
                }
            }
        })
    };
    result.map_err(|errors| {
        let answer = if is_resource_list(text) { refusal(&errors) } else { String::new() };
        (errors, answer)
    })
}

/// Joins files; the first is kept as it is, so that one file alone is not touched.
fn append(output: &mut String, text: &str) {
    if output.is_empty() {
        output.push_str(text);
        return;
    }
    if !output.ends_with('\n') {
        output.push('\n');
    }
    // A byte order mark is one at the beginning of a text alone.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    if lines.next().is_some_and(|line| line.starts_with('%')) {
        // A directive is one behind the end of a document (YAML 1.2.2, 9.2).
        output.push_str("...\n");
    } else if !text.starts_with("---") {
        output.push_str("---\n");
    }
    output.push_str(text);
}

fn read(file: &str, input: &mut dyn Read) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    // One more than is taken, so that what is too large is refused and not cut.
    let most = MAX_BYTES as u64 + 1;
    let result = if file == "-" {
        input.take(most).read_to_end(&mut bytes)
    } else {
        File::open(file).and_then(|file| file.take(most).read_to_end(&mut bytes))
    };
    match result {
        Ok(_) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            Err(format!("{file}: this is a directory; name the files in it"))
        }
        Err(error) => {
            Err(format!("{file}: cannot be read: {error}; name a file, or - for standard input"))
        }
    }
}

type Said = (Settings, Vec<String>);

/// Flags over variables, and warnings; or all bad values at once.
fn settings(
    matches: &ArgMatches,
    environment: &BTreeMap<String, String>,
) -> Result<Said, Vec<String>> {
    let mut settings = Settings::default();
    let mut problems = Vec::new();
    for option in OPTIONS {
        let variable = option.variable();
        let set = environment.get(&variable).map(|value| value.trim());
        let set = set.filter(|value| !value.is_empty() && !is_service_link(value));
        let flag = matches.get_one::<String>(option.name);
        let (place, value) = match (flag, set) {
            (Some(value), _) => (format!("--{}", option.name), value.as_str()),
            (None, Some(value)) => (variable, value),
            (None, None) => continue,
        };
        if let Err(problem) = settings.set(option, value) {
            problems.push(format!("{place}: {problem}"));
        }
    }
    if problems.is_empty() { Ok((settings, unknown(environment))) } else { Err(problems) }
}

/// Kubernetes injects `<SERVICE>_PORT=tcp://...` for each Service of a pod's namespace.
fn is_service_link(value: &str) -> bool {
    ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme))
}

/// Variables with our prefix that mean nothing.
fn unknown(environment: &BTreeMap<String, String>) -> Vec<String> {
    let known = |name: &str| OPTIONS.iter().any(|option| option.variable() == name);
    let injected = |name: &str| ["_SERVICE_", "_TCP", "_UDP"].iter().any(|s| name.contains(s));
    environment
        .iter()
        .filter(|(name, value)| {
            name.starts_with(ENV_PREFIX)
                && !known(name)
                && !injected(name)
                && !is_service_link(value)
        })
        .map(|(name, _)| {
            let near = nearest(name, OPTIONS.iter().map(Opt::variable));
            format!("{name} means nothing here; did you mean {near}?")
        })
        .collect()
}
