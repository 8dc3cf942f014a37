//! `pillion-init`: the pod's first init container.

use std::process::ExitCode;

use pillion_init::config::{self, Config};
use pillion_init::error::Error;
use pillion_init::flags::command;
use pillion_init::log::Log;
use pillion_init::run::run;

fn main() -> ExitCode {
    // `--help`, `--version` and what clap cannot parse end here, the last with code 2.
    let matches = command().get_matches();
    let environment = config::environment();
    let mut stderr = std::io::stderr().lock();
    let mut log = Log::new(&mut stderr);

    let result =
        Config::new(&matches, &environment).map_err(Error::from).and_then(|(config, warnings)| {
            for warning in warnings {
                log.say(warning);
            }
            let path = environment.get("PATH").map(String::as_str).unwrap_or_default();
            run(&config, path, &mut std::io::stdout().lock(), &mut log)
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.say(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
