//! What the load balancer in the place of keel's own lacks, for people.

use std::time::Duration;

use keel_model::StackName;
use keel_server::api::client::Client;
use keel_server::api::types::Lacking;
use tokio::time::{Instant, sleep};

use crate::context::Context;
use crate::failure::Failure;
use crate::ui::table;

/// An engine is given this long to take a change up; what it lacks is known then.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// Places that are named of each thing.
const NAMED: usize = 3;
/// And where a column has to be narrow.
const NAMED_IN_COLUMN: usize = 1;

/// Warns of what `engine` does not do: rows of where, what and why. Nothing is said without any.
pub fn tell<'a>(
    ctx: &Context,
    engine: &str,
    whose: &str,
    rows: impl Iterator<Item = [&'a str; 3]>,
) {
    let plain = |text: &str| text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    let rows: Vec<Vec<String>> = rows.map(|row| row.map(plain).to_vec()).collect();
    let count = match rows.len() {
        0 => return,
        1 => "1 thing".to_owned(),
        many => format!("{many} things"),
    };
    ctx.warn(&format!("{engine} does not do {count} that {whose}:"));
    ctx.note(table::render(&["WHERE", "WHAT", "WHY"], &rows).trim_end());
}

/// Warns of what the server's engine, if it drives one, lacks of what a stack wants.
///
/// # Errors
/// When the server can't be reached.
pub async fn tell_of_stack(
    ctx: &Context,
    client: &Client,
    stack: &StackName,
) -> Result<(), Failure> {
    let Some(engine) = client.info().await?.proxy_engine else { return Ok(()) };
    let until = Instant::now() + PATIENCE;
    let mut view = client.lacks(stack.as_str()).await?;
    while !view.settled && Instant::now() < until {
        sleep(PAUSE).await;
        view = client.lacks(stack.as_str()).await?;
    }
    let rows: Vec<_> =
        view.lacks.iter().map(|lacking| (lacking.named(NAMED_IN_COLUMN), lacking)).collect();
    let rows = rows.iter().map(|(places, l)| [places.as_str(), l.what.as_str(), l.why.as_str()]);
    tell(ctx, &engine, &format!("{stack} asks for"), rows);
    Ok(())
}

/// In one line: what is lacking, where and why.
pub fn line(lacking: &Lacking) -> String {
    format!("{} ({}): {}", lacking.what, lacking.named(NAMED), lacking.why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_bounded() {
        let lacking = |places: usize| Lacking {
            engine: "nginx".to_owned(),
            what: "slow start".to_owned(),
            why: "it has none".to_owned(),
            places: (0..places).map(|n| format!("route a/{n}")).collect(),
        };
        assert_eq!(line(&lacking(1)), "slow start (route a/0): it has none");
        let three = "slow start (route a/0; route a/1; route a/2): it has none";
        assert_eq!(line(&lacking(3)), three);
        assert_eq!(line(&lacking(9)), three.replace("a/2", "a/2; 6 more"));
    }
}
