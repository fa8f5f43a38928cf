//! How long `keel config` takes on a long file, and on files made to hang a reader.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Error;
use super::figure::Figure;
use super::platform::{binary, build, root};

/// Runs of the long file.
const RUNS: usize = 15;
/// Lines of the long file.
const LINES: usize = 2_000;
/// A reader that takes longer than this on a hostile file hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the bench.
pub fn run() -> Result<Vec<Figure>, Error> {
    build()?;
    let directory = root().join("target/bench/config");
    std::fs::create_dir_all(&directory)?;
    let long = directory.join("long.yaml");
    std::fs::write(&long, long_file())?;
    let mut times = Vec::new();
    for run in 0..=RUNS {
        let (time, accepted) = config(&long)?;
        if !accepted {
            return Err("the long file was refused".into());
        }
        if run > 0 {
            times.push(time);
        }
    }
    let mut figures =
        vec![Figure::median(format!("config {LINES} lines, median"), &times, 50.0, "ms")];
    for (name, text) in [("alias bomb", bomb()), ("cyclic alias", CYCLE.to_owned())] {
        let file = directory.join("hostile.yaml");
        std::fs::write(&file, text)?;
        let (time, accepted) = config(&file)?;
        if accepted {
            return Err(format!("the {name} was accepted").into());
        }
        figures.push(Figure::new(format!("{name} refused"), time, 1000.0, "ms"));
    }
    Ok(figures)
}

fn config(file: &std::path::Path) -> Result<(f64, bool), Error> {
    let start = Instant::now();
    let mut child = Command::new(binary("keel"))
        .arg("-f")
        .arg(file)
        .arg("config")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((start.elapsed().as_secs_f64() * 1000.0, status.success()));
        }
        if start.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            return Ok((f64::INFINITY, false));
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn long_file() -> String {
    let mut text = String::from("name: long\nservices:\n");
    let mut lines = 2;
    for index in 0.. {
        let service = format!(
            "  service-{index}:\n    command: [\"server\", \"--port\", \"${{PORT}}\"]\n    environment:\n      \
             LEVEL: ${{LEVEL:-info}}\n      NAME: service-{index}\n    ports:\n      - \"{}:80\"\n    deploy:\n      \
             replicas: 2\n    healthcheck:\n      test: [\"CMD\", \"true\"]\n      interval: 5s\n",
            20_000 + index
        );
        lines += service.lines().count();
        if lines > LINES {
            return text;
        }
        text.push_str(&service);
    }
    text
}

const CYCLE: &str = "name: cycle\nservices:\n  a: &a\n    command: [\"true\"]\n    x-self: *a\n";

/// Nine levels of nine aliases each: 9⁹ nodes when expanded.
fn bomb() -> String {
    let mut text = String::from("name: bomb\nx-0: &x0 [a, a, a, a, a, a, a, a, a]\n");
    for level in 1..9 {
        let alias = vec![format!("*x{}", level - 1); 9].join(", ");
        text.push_str(&format!("x-{level}: &x{level} [{alias}]\n"));
    }
    text.push_str("services:\n  a:\n    command: [\"true\"]\n");
    text
}
