//! From what has changed to what is done about it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use keel_model::{Hook, ServiceName};

use super::filter::Filter;

/// What follows when a file has changed, after it was copied if it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing more.
    Nothing,
    /// The service is restarted.
    Restart,
    /// Its image is built, and released.
    Rebuild,
    /// A command is run in each instance.
    Run(Hook),
}

/// What to do when files below a path change.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Of which service.
    pub service: ServiceName,
    /// What is watched.
    pub path: PathBuf,
    /// It is a file, and no directory.
    pub is_file: bool,
    /// Which files below it count.
    pub filter: Filter,
    /// Where they are copied to in containers.
    pub target: Option<PathBuf>,
    /// What follows.
    pub then: Then,
    /// They are copied once at the beginning.
    pub initial: bool,
}

/// A file that is to be in containers as it is here, or to be absent as it is here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Copy {
    /// Here.
    pub source: PathBuf,
    /// The target of the rule, below which it is.
    pub below: PathBuf,
    /// Instances that start without it have to be restarted once they have it.
    pub restarts: bool,
}

/// What is to be done for a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// What is copied, by where it comes.
    pub copies: BTreeMap<PathBuf, Copy>,
    /// What has changed, whatever is done about it.
    pub changed: BTreeSet<PathBuf>,
    /// The service is restarted.
    pub restart: bool,
    /// Its image is built, and released.
    pub rebuild: bool,
    /// Commands of these rules are run.
    pub run: BTreeSet<usize>,
}

impl Work {
    /// Whether there is nothing to be done.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes up what has come later.
    pub fn add(&mut self, later: Self) {
        self.copies.extend(later.copies);
        self.changed.extend(later.changed);
        self.restart |= later.restart;
        self.rebuild |= later.rebuild;
        self.run.extend(later.run);
    }
}

impl Rule {
    /// Whether a change of this path is one of what is meant: the watched directory itself is not, but what is in it.
    fn concerns(&self, path: &Path) -> bool {
        (self.is_file || *path != *self.path) && self.filter.counts(path)
    }

    /// Where a file comes in a container, if it is copied.
    fn copy(&self, path: &Path) -> Option<(PathBuf, Copy)> {
        let target = self.target.as_deref()?;
        let (source, restarts) = (path.to_owned(), self.then == Then::Restart);
        if !self.is_file {
            let place = target.join(path.strip_prefix(&self.path).ok()?);
            return Some((place, Copy { source, below: target.to_owned(), restarts }));
        }
        // As `cp` has it: a file comes into what ends with a slash.
        let into = target.as_os_str().as_encoded_bytes().ends_with(b"/");
        let place = if into { target.join(path.file_name()?) } else { target.to_owned() };
        let below = place.parent().unwrap_or(Path::new("/")).to_owned();
        Some((place, Copy { source, below, restarts }))
    }
}

/// What is to be done about these changes, for each service that they concern.
pub fn decide(rules: &[Rule], changed: &BTreeSet<PathBuf>) -> BTreeMap<ServiceName, Work> {
    let mut all: BTreeMap<ServiceName, Work> = BTreeMap::new();
    for (at, rule) in rules.iter().enumerate() {
        let below = changed.range(rule.path.clone()..);
        let below = below.take_while(|path| path.starts_with(&rule.path));
        for path in below.filter(|path| rule.concerns(path)) {
            let work = all.entry(rule.service.clone()).or_default();
            work.changed.insert(path.clone());
            work.copies.extend(rule.copy(path));
            match &rule.then {
                Then::Nothing => {}
                Then::Restart => work.restart = true,
                Then::Rebuild => work.rebuild = true,
                Then::Run(_) => drop(work.run.insert(at)),
            }
        }
    }
    all
}

/// What is copied at the beginning: all that there is, for the rules that want that. Nothing follows it: it belongs to the
/// start of the service.
pub fn begin<'a, Paths: Iterator<Item = &'a Path>>(
    rules: &'a [Rule],
    below: impl Fn(&'a Path) -> Paths,
    is_left_out: impl Fn(&ServiceName, &Path) -> bool,
) -> BTreeMap<ServiceName, Work> {
    let mut all: BTreeMap<ServiceName, Work> = BTreeMap::new();
    for rule in rules.iter().filter(|rule| rule.initial && rule.target.is_some()) {
        let wanted = |path: &&Path| rule.concerns(path) && !is_left_out(&rule.service, path);
        for path in below(&rule.path).filter(wanted) {
            let work = all.entry(rule.service.clone()).or_default();
            work.changed.insert(path.to_owned());
            work.copies.extend(rule.copy(path));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use keel_compose::{Span, WatchAction, WatchRule};

    use super::*;

    fn rule(service: &str, path: &str, target: &str, then: Then) -> Rule {
        let plain = WatchRule {
            action: WatchAction::Sync,
            path: path.into(),
            target: None,
            include: Vec::new(),
            ignore: vec!["*.log".to_owned()],
            initial_sync: false,
            exec: None,
            span: Span::start_of("compose.yaml"),
        };
        Rule {
            service: ServiceName::new(service).unwrap(),
            path: path.into(),
            is_file: path.contains('.'),
            filter: Filter::of(&plain, None).unwrap(),
            target: (!target.is_empty()).then(|| target.into()),
            then,
            initial: false,
        }
    }

    fn hook() -> Hook {
        Hook {
            command: vec!["reload".to_owned()],
            environment: BTreeMap::new(),
            working_dir: None,
            user: None,
            per_replica: false,
            image: None,
            privileged: false,
        }
    }

    fn rules() -> Vec<Rule> {
        vec![
            rule("web", "/p/src", "/app", Then::Nothing),
            Rule { is_file: false, ..rule("web", "/p/conf.d", "/etc/conf", Then::Restart) },
            rule("web", "/p/package.json", "", Then::Rebuild),
            rule("web", "/p/app.cfg", "/etc/", Then::Run(hook())),
            rule("api", "/p", "", Then::Restart),
        ]
    }

    fn decided(paths: &[&str]) -> BTreeMap<String, Work> {
        let changed = paths.iter().map(PathBuf::from).collect();
        let all = decide(&rules(), &changed).into_iter();
        all.map(|(name, work)| (name.to_string(), work)).collect()
    }

    fn places(work: &Work) -> Vec<String> {
        let each = work.copies.iter();
        each.map(|(to, it)| format!("{} {}", it.source.display(), to.display())).collect()
    }

    #[test]
    fn each_change_goes_where_the_rules_say() {
        let all = decided(&["/p/src/a/b.js", "/p/src/c", "/p/src/d.log", "/elsewhere/x"]);
        let web = &all["web"];
        // Patterns begin at the path of their rule: for `/p`, `*.log` is not what is in `src`.
        assert_eq!(places(web), ["/p/src/a/b.js /app/a/b.js", "/p/src/c /app/c"]);
        assert!(!web.restart && !web.rebuild && web.run.is_empty());
        assert_eq!(web.changed.len(), 2);
        let api = &all["api"];
        assert!(api.restart && api.copies.is_empty());
        assert_eq!(api.changed.len(), 3);
    }

    #[test]
    fn what_follows_is_done_once_for_a_batch() {
        let all = decided(&["/p/conf.d/x", "/p/package.json", "/p/app.cfg"]);
        let web = &all["web"];
        assert!(web.restart && web.rebuild);
        assert_eq!(web.run, [3].into());
        assert_eq!(places(web), ["/p/app.cfg /etc/app.cfg", "/p/conf.d/x /etc/conf/x"]);
        assert!(web.copies[Path::new("/etc/conf/x")].restarts);
        assert_eq!(web.copies[Path::new("/etc/app.cfg")].below, Path::new("/etc"));
    }

    #[test]
    fn a_watched_directory_is_never_taken_away() {
        let all = decided(&["/p/src", "/p/src/a"]);
        assert_eq!(places(&all["web"]), ["/p/src/a /app/a"]);
        assert!(!decided(&["/p/src"]).contains_key("web"));
        // A file of a longer name is not below it.
        assert!(!decided(&["/p/src2"]).contains_key("web"));
    }

    #[test]
    fn later_work_is_taken_up() {
        let mut first = decided(&["/p/src/a"]).remove("web").unwrap();
        first.add(decided(&["/p/src/b", "/p/package.json"]).remove("web").unwrap());
        assert_eq!((first.copies.len(), first.changed.len(), first.rebuild), (2, 3, true));
        assert!(!first.is_empty() && Work::default().is_empty());
    }

    #[test]
    fn at_the_beginning_all_is_copied_for_those_who_want_it() {
        let mut rules = rules();
        rules[0].initial = true;
        let there = ["/p/src", "/p/src/a", "/p/src/Dockerfile", "/p/src/x.log"].map(Path::new);
        let out = |_: &ServiceName, path: &Path| path.ends_with("Dockerfile");
        let all = begin(&rules, |_| there.into_iter(), out);
        assert_eq!(all.len(), 1);
        let web = &all[&ServiceName::new("web").unwrap()];
        assert_eq!((places(web), web.restart), (vec!["/p/src/a /app/a".to_owned()], false));
    }
}
