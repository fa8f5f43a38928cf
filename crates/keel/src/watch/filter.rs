//! Which files below a watched path count.
//!
//! As `docker compose watch` has it: what matches `ignore`, what the `.dockerignore` of the service's build leaves out,
//! what is in `.git`, and what editors leave beside a file while it is saved does not count; with `include`, only what
//! matches that does.

use std::path::{Path, PathBuf};

use keel_compose::WatchRule;
use keel_container::images::{self, Ignored};
use keel_model::Build;

/// Endings of what editors leave beside a file: Vim, Emacs, JetBrains.
const LEFT_BESIDE: [&str; 3] = ["~", "___jb_tmp___", "___jb_old___"];
/// The same of hidden files: Vim, Kate. Without a dot before it, a `.swp` is a file like any other.
const LEFT_HIDDEN: [&str; 5] = [".swp", ".swpx", ".swo", ".swx", ".kate-swp"];

/// Which files count.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// The watched path, at which patterns begin.
    root: PathBuf,
    include: Option<Ignored>,
    ignore: Ignored,
    /// The context of the service's build, and what it leaves out.
    context: Option<(PathBuf, Ignored)>,
}

impl Filter {
    /// That of a rule. Blocks.
    ///
    /// # Errors
    /// When a pattern is none, or `.dockerignore` can't be read.
    pub fn of(rule: &WatchRule, build: Option<&Build>) -> Result<Self, String> {
        let patterns = |key: &str, patterns: &[String]| {
            Ignored::parse(&patterns.join("\n")).map_err(|reason| format!("`{key}`: {reason}"))
        };
        let context = match build {
            Some(build) => images::ignored(build).map_err(|error| error.to_string())?,
            None => None,
        };
        let place = |build: &Build| {
            let path = PathBuf::from(&build.context);
            std::fs::canonicalize(&path).unwrap_or(path)
        };
        Ok(Self {
            root: rule.path.clone(),
            include: match rule.include.is_empty() {
                true => None,
                false => Some(patterns("include", &rule.include)?),
            },
            ignore: patterns("ignore", &rule.ignore)?,
            context: build.map(place).zip(context),
        })
    }

    /// Whether a change of this file, link or directory counts.
    pub fn counts(&self, path: &Path) -> bool {
        let Ok(below) = path.strip_prefix(&self.root) else { return false };
        if is_nobodys(below) {
            return false;
        }
        let below = below.to_string_lossy();
        // A watched file is meant, whatever patterns there are for those beside it.
        let own = below.is_empty()
            || (!self.ignore.leaves_out(&below)
                && self.include.as_ref().is_none_or(|include| include.leaves_out(&below)));
        own && self
            .of_context(path)
            .is_none_or(|(ignored, at)| at.is_empty() || !ignored.leaves_out(&at))
    }

    /// Whether nothing in this directory counts.
    pub fn skips(&self, directory: &Path) -> bool {
        let Ok(below) = directory.strip_prefix(&self.root) else { return true };
        // Patterns are about what is in a root, and not about the root.
        let all_out = |ignored: &Ignored, at: &str| {
            !at.is_empty() && ignored.leaves_out(at) && ignored.leaves_out_all_of(at)
        };
        is_nobodys(below)
            || all_out(&self.ignore, &below.to_string_lossy())
            || self.of_context(directory).is_some_and(|(ignored, at)| all_out(ignored, &at))
    }

    /// What the build leaves out, and what the path is called there.
    fn of_context(&self, path: &Path) -> Option<(&Ignored, String)> {
        let (context, ignored) = self.context.as_ref()?;
        let at = path.strip_prefix(context).ok()?;
        Some((ignored, at.to_string_lossy().into_owned()))
    }
}

/// What is no work of the user's: the repository's own files, and what editors make on the way.
fn is_nobodys(below: &Path) -> bool {
    below.components().any(|part| part.as_os_str() == ".git")
        || below.file_name().is_some_and(|name| is_left_beside(&name.to_string_lossy()))
}

fn is_left_beside(name: &str) -> bool {
    // Vim tries with a file of this name whether it may write.
    let known = name == "4913"
        || name.starts_with(".#")
        || name.starts_with(".goutputstream-")
        || (name.len() > 1 && name.starts_with('#') && name.ends_with('#'));
    let ends = |ending: &&str| name.len() > ending.len() && name.ends_with(*ending);
    known || LEFT_BESIDE.iter().any(ends) || (name.starts_with('.') && LEFT_HIDDEN.iter().any(ends))
}

/// Whether a file says how the stack is made; it is no part of what is copied once at the beginning.
pub fn describes_the_stack(path: &Path, build: Option<&Build>) -> bool {
    let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else {
        return false;
    };
    let dockerfile = build.and_then(|build| build.dockerfile.as_deref()).unwrap_or("Dockerfile");
    let stem = name.strip_suffix(".yaml").or_else(|| name.strip_suffix(".yml"));
    let compose = ["compose", "docker-compose", "compose.override", "docker-compose.override"];
    stem.is_some_and(|stem| compose.contains(&stem))
        || name == "Dockerfile"
        || Path::new(dockerfile).file_name().is_some_and(|dockerfile| *dockerfile == *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(include: &str, ignore: &str, context: Option<(&str, &str)>) -> Filter {
        let parse = |text: &str| Ignored::parse(text).unwrap();
        Filter {
            root: "/app/src".into(),
            include: (!include.is_empty()).then(|| parse(include)),
            ignore: parse(ignore),
            context: context.map(|(path, text)| (path.into(), parse(text))),
        }
    }

    fn counting(filter: &Filter, names: &[&str]) -> Vec<String> {
        let counts = |name: &&&str| filter.counts(&Path::new("/app/src").join(**name));
        names.iter().filter(counts).map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn patterns_begin_at_the_watched_path_and_those_of_the_build_at_its_context() {
        let names = ["a.js", "a.log", "sub/a.log", "node_modules/x/y.js", "dist/z.js", "keep.log"];
        let ignore = filter("", "*.log\nnode_modules/\n!keep.log", None);
        assert_eq!(counting(&ignore, &names), ["a.js", "sub/a.log", "dist/z.js", "keep.log"]);
        let build = filter("", "", Some(("/app", "src/dist\n**/*.log\n")));
        assert_eq!(counting(&build, &names), ["a.js", "node_modules/x/y.js"]);
        let both = filter("**/*.js", "node_modules", Some(("/other", "*")));
        assert_eq!(counting(&both, &names), ["a.js", "dist/z.js"]);
        assert!(!ignore.counts(Path::new("/app/other")), "what is elsewhere is not watched");
        assert!(filter("*.js", "*", None).counts(Path::new("/app/src")), "a file itself is meant");
    }

    #[test]
    fn what_editors_and_git_leave_does_not_count() {
        let all = filter("", "", None);
        let left = [
            ".git",
            ".git/HEAD",
            "sub/.git/index",
            "4913",
            "a.js~",
            ".a.js.swp",
            ".#a.js",
            "#a.js#",
            "a.js___jb_tmp___",
            ".goutputstream-X1",
        ];
        assert_eq!(counting(&all, &left), Vec::<String>::new());
        let kept = ["a.swp", "git/HEAD", ".gitignore", "#", "~", "14913"];
        assert_eq!(counting(&all, &kept), kept);
    }

    #[test]
    fn directories_are_skipped_only_if_nothing_in_them_can_count() {
        let filter =
            filter("", "node_modules\ndocs\n!docs/README.md", Some(("/app", "src/target")));
        let skips = |name: &str| filter.skips(&Path::new("/app/src").join(name));
        assert!(skips("node_modules") && skips("target/debug") && skips(".git"));
        assert!(!skips("docs") && !skips("sub") && !skips(""));
        let all_but = Filter {
            context: Some(("/app/src".into(), Ignored::parse("*\n!lib").unwrap())),
            ..filter
        };
        assert!(!all_but.skips(Path::new("/app/src")) && all_but.skips(Path::new("/app/src/sub")));
        assert!(all_but.counts(Path::new("/app/src/lib/x")));
    }

    #[test]
    fn files_about_the_stack_are_known() {
        let build = Build { dockerfile: Some("docker/Web.Dockerfile".into()), ..Build::default() };
        for name in ["Dockerfile", "compose.yaml", "docker-compose.override.yml", "Web.Dockerfile"]
        {
            assert!(describes_the_stack(&Path::new("/a").join(name), Some(&build)), "{name}");
        }
        assert!(!describes_the_stack(Path::new("/a/my-compose.yaml"), None));
    }
}
