//! A program that is nothing but a shim, for tests and measurements.

fn main() -> std::process::ExitCode {
    keel_runtime::shim_main(std::env::args_os().skip(2))
}
