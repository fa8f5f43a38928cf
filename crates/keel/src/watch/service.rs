//! What is done for one service: batch after batch, each to its end, while what comes meanwhile is gathered for the next.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use keel_model::{Hook, InstanceId, Phase, RuntimeKind, ServiceName, Timestamp};
use keel_runtime::{ContainerExec, ExecSpec};
use keel_server::api::client::Error;
use keel_server::api::types::{InstanceView, StackView};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::decide::{Rule, Then, Work};
use super::deliver::{Delivered, deliver};
use super::ledger::Ledger;
use super::release::Released;
use super::say::{Batch, count};
use super::{Setting, command};
use crate::failure::Failure;

/// After this, what could not be copied is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// Which attempts of a service run: when others do, containers may be new.
type Running = BTreeSet<(InstanceId, u32, Option<Timestamp>)>;

/// One service that is watched.
pub(super) struct Service<'a> {
    setting: &'a Setting<'a>,
    pub(super) name: ServiceName,
    kind: RuntimeKind,
    rules: &'a [Rule],
    /// What is to be done.
    pending: RefCell<Work>,
    /// There is something to be done.
    wake: Notify,
    /// Other instances run than before.
    look: Notify,
    running: RefCell<Option<Running>>,
    ledger: RefCell<Ledger>,
    /// The container of each instance when it was last looked at.
    containers: RefCell<BTreeMap<InstanceId, String>>,
    /// It was looked at once: a container that was not there then is new.
    begun: Cell<bool>,
    /// Some container lacks something.
    owes: Cell<bool>,
}

/// What became of copies.
#[derive(Debug, Default)]
struct Caught {
    /// What came into the containers, and how many these are.
    delivered: Delivered,
    instances: usize,
    /// Some of them were new, and have to be restarted.
    restart: bool,
    failed: Vec<String>,
}

impl<'a> Service<'a> {
    pub(super) fn new(
        setting: &'a Setting<'a>,
        name: ServiceName,
        kind: RuntimeKind,
        rules: &'a [Rule],
    ) -> Self {
        Self {
            setting,
            name,
            kind,
            rules,
            pending: RefCell::default(),
            wake: Notify::new(),
            look: Notify::new(),
            running: RefCell::default(),
            ledger: RefCell::default(),
            containers: RefCell::default(),
            begun: Cell::new(false),
            owes: Cell::new(false),
        }
    }

    /// Takes up work.
    pub(super) fn give(&self, work: Work) {
        self.pending.borrow_mut().add(work);
        self.wake.notify_one();
    }

    /// Takes up how the stack stands now.
    pub(super) fn see(&self, view: &StackView) {
        let now: Running = running(view, &self.name)
            .map(|it| {
                let status = it.status.as_ref();
                (it.id.clone(), it.attempts, status.and_then(|status| status.started_at))
            })
            .collect();
        let mut known = self.running.borrow_mut();
        if known.as_ref() != Some(&now) {
            *known = Some(now);
            self.look.notify_one();
        }
    }

    /// Works until it is dropped.
    ///
    /// # Errors
    /// When nobody can be told any more.
    pub(super) async fn run(&self) -> Result<(), Failure> {
        loop {
            let again = async {
                if self.owes.get() { sleep(AGAIN).await } else { std::future::pending().await }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                () = self.look.notified() => self.catch_up().await?,
                () = again => self.catch_up().await?,
            }
            let work = std::mem::take(&mut *self.pending.borrow_mut());
            if !work.is_empty() {
                self.act(work).await?;
            }
        }
    }

    /// Does what a batch asks for, and tells of it.
    async fn act(&self, work: Work) -> Result<(), Failure> {
        let began = Instant::now();
        let mut batch = Batch { changed: work.changed.len(), ..Batch::default() };
        if !work.copies.is_empty() {
            self.ledger.borrow_mut().add(work.copies);
            let caught = self.bring_up().await;
            self.note_copies(&caught, &mut batch);
        }
        let mut restart = work.restart;
        if work.rebuild {
            let files = count(batch.changed, "file");
            self.setting.say.note(&format!("{}: {files} changed, is built anew…", self.name));
            match self.rebuild().await? {
                Released::Yes(how) => {
                    restart = false;
                    batch.done.push(how);
                }
                Released::Same => batch.done.push("built, and the same as before".to_owned()),
                Released::No(why) => batch.failed.push(why),
            }
        }
        if restart {
            match self.setting.restart(&self.name, self.kind).await {
                Ok(()) => batch.done.push("restarted".to_owned()),
                Err(why) => batch.failed.push(why),
            }
        }
        for rule in work.run.iter().filter_map(|at| self.rules.get(*at)) {
            if let Then::Run(hook) = &rule.then {
                self.run_in_each(hook, &mut batch).await;
            }
        }
        self.setting.say.batch(&self.name, &batch, began.elapsed())
    }

    fn note_copies(&self, caught: &Caught, batch: &mut Batch) {
        let Delivered { copied, removed } = caught.delivered;
        let to = count(caught.instances, "instance");
        let what = match (caught.instances, copied, removed) {
            (0, ..) if caught.failed.is_empty() => {
                "no instance runs; those that start get it".to_owned()
            }
            (0, ..) => "copied to no instance".to_owned(),
            (_, 0, _) => format!("removed from {to}"),
            (_, _, 0) => format!("copied to {to}"),
            _ => format!("{copied} copied to and {removed} removed from {to}"),
        };
        batch.done.push(what);
        batch.failed.extend(caught.failed.clone());
    }

    /// Builds and releases.
    async fn rebuild(&self) -> Result<Released, Failure> {
        let setting = self.setting;
        if self.kind == RuntimeKind::Container {
            if let Err(failure) = self.meanwhile(setting.build(&self.name)).await? {
                failure.report(setting.say.ctx.talk, setting.say.ctx.json());
                return Ok(Released::No("not built, what ran before runs on".to_owned()));
            }
            if let Some(context) = setting.context(&self.name) {
                self.ledger.borrow_mut().built_from(&context);
            }
        }
        self.meanwhile(setting.release(&self.name, self.kind)).await
    }

    /// Keeps new containers up to date while something takes its time.
    async fn meanwhile<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                () = self.look.notified() => self.catch_up().await?,
            }
        }
    }

    /// Brings containers up to date that were not there before.
    async fn catch_up(&self) -> Result<(), Failure> {
        let began = Instant::now();
        let caught = self.bring_up().await;
        if caught.instances == 0 && caught.failed.is_empty() {
            return Ok(());
        }
        let mut batch = Batch { failed: caught.failed, ..Batch::default() };
        if caught.instances > 0 {
            let Delivered { copied, removed } = caught.delivered;
            let what = count(copied + removed, "earlier change");
            batch.done.push(format!("{what} brought to {}", count(caught.instances, "instance")));
        }
        if caught.restart {
            self.give(Work { restart: true, ..Work::default() });
        }
        self.setting.say.batch(&self.name, &batch, began.elapsed())
    }

    /// Brings to each running container what it lacks.
    async fn bring_up(&self) -> Caught {
        let mut caught = Caught::default();
        if self.kind == RuntimeKind::Process {
            return caught;
        }
        let containers = match self.containers().await {
            Ok(containers) => containers,
            Err(error) => {
                self.owes.set(true);
                caught.failed.push(error.to_string());
                return caught;
            }
        };
        let began = self.begun.replace(true);
        let each = containers.iter().map(|into| async move {
            let (is_new, lacking) = {
                let ledger = self.ledger.borrow();
                (began && ledger.is_new(&into.container), ledger.lacking(&into.container))
            };
            let done = match lacking.copies.is_empty() {
                true => Ok(Delivered::default()),
                false => deliver(into, &lacking.copies).await,
            };
            (into, is_new, lacking, done)
        });
        let all = join_all(each).await;
        let mut ledger = self.ledger.borrow_mut();
        for (into, is_new, lacking, done) in all {
            match done {
                Ok(delivered) => {
                    ledger.has(&into.container, lacking.upto);
                    if !lacking.copies.is_empty() {
                        caught.instances += 1;
                        caught.delivered = delivered;
                        caught.restart |= is_new && lacking.copies.values().any(|it| it.restarts);
                    }
                }
                Err(error) => caught.failed.push(format!("{}: {error}", into.instance)),
            }
        }
        drop(ledger);
        self.owes.set(!caught.failed.is_empty());
        caught
    }

    /// The containers that run; those of which no instance is left are forgotten.
    async fn containers(&self) -> Result<Vec<ContainerExec>, Error> {
        let client = self.setting.client;
        let view = client.stack(self.setting.stack.name.as_str()).await?;
        let mut found = Vec::new();
        for instance in running(&view, &self.name) {
            match client.exec_spec(instance.id.as_str()).await {
                Ok(ExecSpec::Container(into)) => found.push(into),
                Ok(ExecSpec::Process(_)) => {}
                // It has just ended.
                Err(Error::Refused(refused)) if refused.code == "no_such_instance" => {}
                Err(error) => return Err(error),
            }
        }
        let mut known = self.containers.borrow_mut();
        let there = view.services.get(&self.name);
        let there: BTreeSet<&InstanceId> =
            there.iter().flat_map(|service| &service.instances).map(|it| &it.id).collect();
        known.retain(|id, _| there.contains(id));
        known.extend(found.iter().map(|into| (into.instance.clone(), into.container.clone())));
        self.ledger.borrow_mut().keep(&known.values().cloned().collect());
        Ok(found)
    }

    /// Runs a command in each instance.
    async fn run_in_each(&self, hook: &Hook, batch: &mut Batch) {
        let program = hook.command.first().map_or("the command", String::as_str);
        let stack = &self.setting.stack.name;
        let view = match self.setting.client.stack(stack.as_str()).await {
            Ok(view) => view,
            Err(error) => return batch.failed.push(error.to_string()),
        };
        let each = running(&view, &self.name)
            .map(|instance| command::run(self.setting, &instance.id, hook));
        let done: Vec<Result<(), String>> = join_all(each).await;
        let well = done.iter().filter(|done| done.is_ok()).count();
        if well > 0 || done.is_empty() {
            batch.done.push(format!("{program} run in {}", count(well, "instance")));
        }
        batch.failed.extend(done.into_iter().filter_map(Result::err));
    }
}

/// The instances of a service that run.
fn running<'v>(view: &'v StackView, name: &ServiceName) -> impl Iterator<Item = &'v InstanceView> {
    let instances = view.services.get(name).into_iter().flat_map(|service| &service.instances);
    instances.filter(|instance| instance.phase == Some(Phase::Running))
}
