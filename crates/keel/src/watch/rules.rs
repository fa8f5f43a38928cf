//! From `develop.watch` to rules that can be followed, and what is said about those that can't.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use keel_compose::{Code, Diagnostic, Lowered, WatchAction, WatchRule};
use keel_model::{Build, Mount, MountSource, RuntimeKind, ServiceName};

use super::decide::{Rule, Then};
use super::filter::Filter;
use crate::context::Context;
use crate::failure::Failure;
use crate::project;

/// What is watched, for whom.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In the order of the file.
    pub rules: Vec<Rule>,
}

impl Plan {
    /// Whether a service has a rule.
    pub fn watches(&self, service: &ServiceName) -> bool {
        self.rules.iter().any(|rule| rule.service == *service)
    }

    /// The services that have a rule.
    pub fn services(&self) -> BTreeSet<ServiceName> {
        self.rules.iter().map(|rule| rule.service.clone()).collect()
    }
}

/// What a rule is about.
struct Subject<'a> {
    name: &'a ServiceName,
    runtime: RuntimeKind,
    mounts: &'a [Mount],
    working_dir: Option<&'a Path>,
    build: Option<&'a Build>,
    /// Nothing is to be built.
    no_build: bool,
}

/// The rules of these services; of all when absent. What is wrong with them is told with its place.
///
/// # Errors
/// When a rule can't be followed, or there is none.
pub fn plan(
    ctx: &Context,
    lowered: &Lowered,
    services: Option<&BTreeSet<ServiceName>>,
    no_build: bool,
) -> Result<Plan, Failure> {
    let (mut plan, mut told) = (Plan::default(), Vec::new());
    let wanted = |name: &ServiceName| services.is_none_or(|services| services.contains(name));
    for (name, rules) in lowered.watch.iter().filter(|(name, _)| wanted(name)) {
        let Some(service) = lowered.stack.services.get(name) else { continue };
        let build = lowered.images.get(name).and_then(|source| source.build.as_deref());
        let subject = Subject {
            name,
            runtime: service.spec.runtime,
            mounts: &service.spec.mounts,
            working_dir: service.spec.working_dir.as_deref(),
            build,
            no_build,
        };
        for rule in rules {
            match subject.rule(rule, &mut told) {
                Ok(found) => plan.rules.extend(found),
                Err(error) => told.push(error.at(&rule.span)),
            }
        }
    }
    project::judge(ctx, &told)?;
    if plan.rules.is_empty() {
        return Err(nothing(lowered, services));
    }
    Ok(plan)
}

/// Why there is nothing to watch.
fn nothing(lowered: &Lowered, services: Option<&BTreeSet<ServiceName>>) -> Failure {
    let wanted = |name: &ServiceName| services.is_none_or(|services| services.contains(name));
    if lowered.watch.keys().any(wanted) {
        return Failure::input("nothing is left to watch").hint("see what was said above");
    }
    let message = match services {
        None => "no service has `develop.watch`".to_owned(),
        Some(services) => {
            let names: Vec<&str> = services.iter().map(ServiceName::as_str).collect();
            format!("there is no `develop.watch` for {}", names.join(", "))
        }
    };
    let example = "develop: {watch: [{path: ./src, action: sync, target: /app/src}]}";
    Failure::input(message).hint(format!("say what is to be done when files change: {example}"))
}

impl Subject<'_> {
    /// The rule as it is followed; `None` if nothing would be done. What may surprise is told.
    fn rule(
        &self,
        rule: &WatchRule,
        told: &mut Vec<Diagnostic>,
    ) -> Result<Option<Rule>, Diagnostic> {
        let metadata = fs::metadata(&rule.path).map_err(|error| {
            let path = rule.path.display();
            let message = match error.kind() {
                std::io::ErrorKind::NotFound => format!("there is no {path} to watch"),
                _ => format!("{path} can't be watched: {error}"),
            };
            Diagnostic::error(Code::File, message)
                .help("make it, or correct the path: it begins at the directory of the project")
        })?;
        let (target, then) = match self.runtime {
            RuntimeKind::Container => self.of_container(rule, told)?,
            RuntimeKind::Process => self.of_process(rule, told)?,
        };
        if target.is_none() && then == Then::Nothing {
            return Ok(None);
        }
        let filter = Filter::of(rule, self.build)
            .map_err(|reason| Diagnostic::error(Code::InvalidValue, reason))?;
        Ok(Some(Rule {
            service: self.name.clone(),
            path: rule.path.clone(),
            is_file: !metadata.is_dir(),
            filter,
            initial: rule.initial_sync && target.is_some(),
            target,
            then,
        }))
    }

    fn then(&self, rule: &WatchRule) -> Result<Then, Diagnostic> {
        let name = self.name;
        Ok(match rule.action {
            WatchAction::Sync => Then::Nothing,
            WatchAction::Restart | WatchAction::SyncRestart => Then::Restart,
            WatchAction::Rebuild => Then::Rebuild,
            WatchAction::SyncExec => {
                let message = || format!("`sync+exec` of `{name}` has no command to run");
                let missing = || {
                    Diagnostic::error(Code::MissingKey, message())
                        .help("add `exec: {command: [program, argument]}`, or write `action: sync`")
                };
                Then::Run(rule.exec.clone().ok_or_else(missing)?)
            }
        })
    }

    fn of_container(
        &self,
        rule: &WatchRule,
        told: &mut Vec<Diagnostic>,
    ) -> Result<(Option<PathBuf>, Then), Diagnostic> {
        let name = self.name;
        let then = self.then(rule)?;
        if then == Then::Rebuild && self.build.is_none() {
            let message = format!("`{name}` can't be rebuilt: it has no `build`");
            return Err(Diagnostic::error(Code::MissingKey, message)
                .help("add `build: DIRECTORY`, or write another action, such as `sync+restart`"));
        }
        if then == Then::Rebuild && self.no_build {
            let message =
                format!("`{name}` is to be rebuilt when files change, and --no-build forbids it");
            return Err(Diagnostic::error(Code::Conflict, message).help("leave out --no-build"));
        }
        let copies = matches!(
            rule.action,
            WatchAction::Sync | WatchAction::SyncRestart | WatchAction::SyncExec
        );
        let target = rule.target.as_ref().filter(|_| copies);
        // As the engine takes it: what a container calls its root is where all begins.
        let target = target.map(|target| Path::new("/").join(target));
        let Some(target) = target else { return Ok((None, then)) };
        if let Some(mount) = self.mounted(&rule.path) {
            let (path, mount) = (rule.path.display(), mount.display());
            let message =
                format!("{path} is not copied to `{name}`: it has {mount} as a volume already");
            told.push(Diagnostic::note(Code::Conflict, message).at(&rule.span));
            return Ok((None, then));
        }
        Ok((Some(target), then))
    }

    /// The directory of this machine with the path in it that is a volume of the service.
    fn mounted(&self, path: &Path) -> Option<&Path> {
        let bound = self.mounts.iter().filter_map(|mount| match &mount.source {
            MountSource::Bind { path, .. } => Some(&**path),
            _ => None,
        });
        let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        bound.into_iter().find(|source| path.starts_with(real(source)))
    }

    /// A process reads the files of this machine where they are.
    fn of_process(
        &self,
        rule: &WatchRule,
        told: &mut Vec<Diagnostic>,
    ) -> Result<(Option<PathBuf>, Then), Diagnostic> {
        let then = self.then(rule)?;
        if let Some(target) = &rule.target {
            let (name, path) = (self.name, rule.path.display());
            let place = self.working_dir.unwrap_or(Path::new("/")).join(target);
            let same = fs::canonicalize(&place).is_ok_and(|place| place == rule.path);
            if same && then == Then::Nothing {
                let message =
                    format!("`{name}` is a process of this machine: {path} need not be copied");
                told.push(Diagnostic::note(Code::Unsupported, message).at(&rule.span));
            } else if !same {
                let target = target.display();
                let message = format!(
                    "`{name}` is a process of this machine: nothing is copied to {target}, it has to read {path}"
                );
                told.push(
                    Diagnostic::warning(Code::Unsupported, message)
                        .help("write `action: restart`, and let the process read its files where they are")
                        .at(&rule.span),
                );
            }
        }
        Ok((None, then))
    }
}

#[cfg(test)]
mod tests {
    use keel_compose::Span;

    use super::*;

    fn rule(action: WatchAction, path: &Path, target: &str) -> WatchRule {
        WatchRule {
            action,
            path: path.to_owned(),
            target: (!target.is_empty()).then(|| target.into()),
            include: Vec::new(),
            ignore: Vec::new(),
            initial_sync: true,
            exec: None,
            span: Span::start_of("compose.yaml"),
        }
    }

    struct Case {
        runtime: RuntimeKind,
        mounts: Vec<Mount>,
        build: Option<Build>,
        told: Vec<String>,
    }

    impl Case {
        fn new(runtime: RuntimeKind) -> Self {
            Self { runtime, mounts: Vec::new(), build: None, told: Vec::new() }
        }

        fn rule(&mut self, rule: &WatchRule) -> Result<Option<Rule>, String> {
            let name = ServiceName::new("web").unwrap();
            let subject = Subject {
                name: &name,
                runtime: self.runtime,
                mounts: &self.mounts,
                working_dir: None,
                build: self.build.as_ref(),
                no_build: false,
            };
            let mut told = Vec::new();
            let found = subject.rule(rule, &mut told);
            self.told = told.iter().map(ToString::to_string).collect();
            found.map_err(|error| error.to_string())
        }
    }

    #[test]
    fn containers_are_copied_to_restarted_and_rebuilt() {
        let dir = tempfile::tempdir().unwrap();
        let mut case = Case::new(RuntimeKind::Container);
        let found = case.rule(&rule(WatchAction::Sync, dir.path(), "app")).unwrap().unwrap();
        assert_eq!((found.target.unwrap(), found.initial), ("/app".into(), true));
        let found =
            case.rule(&rule(WatchAction::SyncRestart, dir.path(), "/app")).unwrap().unwrap();
        assert!(found.target.is_some() && found.then == Then::Restart && !found.is_file);
        let error = case.rule(&rule(WatchAction::Rebuild, dir.path(), "")).unwrap_err();
        assert!(error.contains("has no `build`"), "{error}");
        let error = case.rule(&rule(WatchAction::SyncExec, dir.path(), "/x")).unwrap_err();
        assert!(error.contains("no command"), "{error}");
        let error =
            case.rule(&rule(WatchAction::Sync, &dir.path().join("none"), "/x")).unwrap_err();
        assert!(error.contains("there is no /"), "{error}");
        case.build = Some(Build { context: dir.path().display().to_string(), ..Build::default() });
        let found = case.rule(&rule(WatchAction::Rebuild, dir.path(), "/unused")).unwrap().unwrap();
        assert_eq!((found.target, found.then), (None, Then::Rebuild));
        let mut bad = rule(WatchAction::Rebuild, dir.path(), "");
        bad.ignore = vec!["[a".to_owned()];
        assert!(case.rule(&bad).unwrap_err().contains("`ignore`"));
    }

    #[test]
    fn what_is_a_volume_is_not_copied() {
        let dir = tempfile::tempdir().unwrap();
        let path = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(path.join("src")).unwrap();
        let mut case = Case::new(RuntimeKind::Container);
        case.mounts = vec![Mount {
            source: MountSource::Bind { path: path.clone(), create: false },
            target: "/app".into(),
            read_only: false,
            options: None,
        }];
        assert!(
            case.rule(&rule(WatchAction::Sync, &path.join("src"), "/app/src")).unwrap().is_none()
        );
        assert!(case.told[0].contains("as a volume already"), "{:?}", case.told);
        let found = case.rule(&rule(WatchAction::SyncRestart, &path, "/app")).unwrap().unwrap();
        assert_eq!((found.target, found.then, found.initial), (None, Then::Restart, false));
    }

    #[test]
    fn nothing_is_copied_to_processes() {
        let dir = tempfile::tempdir().unwrap();
        let path = fs::canonicalize(dir.path()).unwrap();
        let mut case = Case::new(RuntimeKind::Process);
        assert!(case.rule(&rule(WatchAction::Sync, &path, "/app")).unwrap().is_none());
        assert!(case.told[0].contains("nothing is copied to /app"), "{:?}", case.told);
        let same = path.display().to_string();
        assert!(case.rule(&rule(WatchAction::Sync, &path, &same)).unwrap().is_none());
        assert!(case.told[0].contains("need not be copied"), "{:?}", case.told);
        let found = case.rule(&rule(WatchAction::SyncRestart, &path, &same)).unwrap().unwrap();
        assert_eq!((found.target, found.then), (None, Then::Restart));
        assert!(case.told.is_empty());
        let found = case.rule(&rule(WatchAction::Rebuild, &path, "")).unwrap().unwrap();
        assert_eq!(found.then, Then::Rebuild);
    }
}
