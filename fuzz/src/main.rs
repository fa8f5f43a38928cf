#![cfg_attr(fuzzing, no_main)]
//! Runs one target: under libFuzzer when built by `cargo xtask fuzz`, else over the files that are named.

#[cfg(fuzzing)]
mod engine {
    //! libFuzzer calls in here. The target is named by `KEEL_FUZZ_TARGET`.

    use std::sync::OnceLock;

    static TARGET: OnceLock<&fuzz::Target> = OnceLock::new();

    fn target() -> &'static fuzz::Target {
        let name = std::env::var("KEEL_FUZZ_TARGET").unwrap_or_default();
        fuzz::TARGETS.iter().find(|t| t.name == name).expect("KEEL_FUZZ_TARGET names a target")
    }

    libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (TARGET.get_or_init(target).run)(bytes));
}

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_default();
    let Some(target) = fuzz::TARGETS.iter().find(|t| t.name == name) else {
        let names: Vec<_> = fuzz::TARGETS.iter().map(|t| t.name).collect();
        eprintln!("usage: fuzz TARGET FILE…\n\nTargets: {}", names.join(", "));
        return std::process::ExitCode::from(2);
    };
    for file in arguments {
        eprintln!("{file}");
        match std::fs::read(&file) {
            Ok(bytes) => (target.run)(&bytes),
            Err(error) => {
                eprintln!("cannot read it: {error}");
                return std::process::ExitCode::FAILURE;
            }
        }
    }
    std::process::ExitCode::SUCCESS
}
