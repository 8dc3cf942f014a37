//! The guided tour behind `make demo`: pods made of network namespaces, real
//! traffic, the real binaries. Every line of the closing table was observed in
//! this run; what could not be observed makes the tour fail.

mod story;
mod tour;

use std::process::ExitCode;

fn main() -> ExitCode {
    match tour::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("\nThe tour stopped: {failure}");
            ExitCode::FAILURE
        }
    }
}
