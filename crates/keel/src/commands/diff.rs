//! `keel diff`: what `up` would change, before it does.

use keel_server::api::types::{ApplyRequest, ChangeView, FieldChange};

use crate::cli::FileArgs;
use crate::context::{Context, print, print_json};
use crate::failure::{FAILED, Failure};
use crate::ui::paint::Paint;
use crate::{names, project, spawn};

/// Options of `keel diff`.
#[derive(clap::Args, Clone, Debug)]
pub struct DiffArgs {
    /// Only these services
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// End with 1 when something would change, as `git diff --exit-code` does
    #[arg(long)]
    pub exit_code: bool,
    /// Compose files
    #[command(flatten)]
    pub files: FileArgs,
}

/// Runs the command.
///
/// # Errors
/// When the files are wrong or the server can't be reached.
pub async fn run(ctx: &Context, args: DiffArgs) -> Result<(), Failure> {
    let stack = project::stack(ctx, &args.services)?;
    let known: Vec<&str> = stack.services.keys().map(keel_model::ServiceName::as_str).collect();
    for name in &args.services {
        if !known.contains(&name.as_str()) {
            return Err(names::unknown_service(name, stack.name.as_str(), &known));
        }
    }
    let services =
        stack.services.keys().filter(|name| args.services.iter().any(|s| s == name.as_str()));
    let services: Vec<_> = services.cloned().collect();
    let client = spawn::ensure_server(ctx).await?;
    let request = ApplyRequest {
        services: (!services.is_empty()).then_some(services),
        remove_orphans: args.services.is_empty(),
        force_recreate: false,
        change: "diff".to_owned(),
        stack,
    };
    let changes = client.diff(&request).await?;
    if ctx.json() {
        print_json(&changes)?;
    } else if changes.is_empty() {
        ctx.note(&format!("{} is up to date", request.stack.name));
    } else {
        print(&render(&changes, ctx.paint))?;
    }
    if args.exit_code && !changes.is_empty() {
        return Err(Failure::Quiet(FAILED));
    }
    Ok(())
}

/// Renders changes like a diff: `+` is new, `-` is gone, `~` differs.
pub fn render(changes: &[ChangeView], paint: Paint) -> String {
    changes.iter().map(|change| one(change, paint)).collect()
}

fn one(change: &ChangeView, paint: Paint) -> String {
    let (sign, head) = match change.kind.as_str() {
        "create" => ("+", paint.good(format_args!("+ {}", change.service))),
        "remove" => ("-", paint.bad(format_args!("- {}", change.service))),
        _ => ("~", paint.style(anstyle::Style::new().bold(), format_args!("~ {}", change.service))),
    };
    let mut how = change.kind.clone();
    if !change.how.is_empty() {
        how = format!("{how}, {}", change.how);
    }
    let mut text = format!("{head}  {}\n", paint.dim(format_args!("({how})")));
    if sign != "-" {
        text.extend(change.fields.iter().map(|field| lines(field, paint)));
    }
    text
}

fn lines(field: &FieldChange, paint: Paint) -> String {
    let part = |sign: &str, value: &str| {
        format!("  {sign} {}: {}", field.path, value.replace('\n', "\\n"))
    };
    let mut text = String::new();
    if let Some(before) = &field.before {
        text.push_str(&paint.bad(part("-", before)));
        text.push('\n');
    }
    if let Some(after) = &field.after {
        text.push_str(&paint.good(part("+", after)));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use keel_model::ServiceName;

    use super::*;

    fn change(service: &str, kind: &str, fields: Vec<FieldChange>) -> ChangeView {
        ChangeView {
            service: ServiceName::new(service).unwrap(),
            kind: kind.to_owned(),
            how: if kind == "replace" {
                "start-first, 1 at a time".to_owned()
            } else {
                String::new()
            },
            fields,
        }
    }

    fn field(path: &str, before: Option<&str>, after: Option<&str>) -> FieldChange {
        FieldChange {
            path: path.to_owned(),
            before: before.map(str::to_owned),
            after: after.map(str::to_owned),
        }
    }

    #[test]
    fn changes_read_like_a_diff() {
        let changes = [
            change("cart", "create", vec![field("command", None, Some("shop cart"))]),
            change(
                "catalog",
                "replace",
                vec![field("environment.LOG_LEVEL", Some("info"), Some("debug"))],
            ),
            change("old", "remove", vec![field("command", Some("shop old"), None)]),
        ];
        insta::assert_snapshot!(render(&changes, Paint::PLAIN), @r"
        + cart  (create)
          + command: shop cart
        ~ catalog  (replace, start-first, 1 at a time)
          - environment.LOG_LEVEL: info
          + environment.LOG_LEVEL: debug
        - old  (remove)
        ");
    }
}
