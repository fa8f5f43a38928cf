//! A program that is nothing but a shim, for tests and measurements. `enter SPEC COMMAND…` runs a command inside the
//! instance that a JSON exec spec describes.

use std::collections::BTreeMap;
use std::process::ExitCode;

use keel_runtime::{ExecSpec, exec_into, shim_main};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let first = args.next();
    if first.is_some_and(|word| word == "enter") {
        return enter(args.filter_map(|word| word.into_string().ok()).collect());
    }
    shim_main(args)
}

fn enter(mut words: Vec<String>) -> ExitCode {
    let command = words.split_off(1);
    match serde_json::from_str(&words[0]) {
        Ok(ExecSpec::Process(spec)) => {
            let error = exec_into(&spec, command, &BTreeMap::new(), None);
            eprintln!("{error}");
        }
        Ok(ExecSpec::Container(_)) => eprintln!("not a process"),
        Err(error) => eprintln!("{error}"),
    }
    ExitCode::FAILURE
}
