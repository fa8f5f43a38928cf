//! How many instances a service has, of which revision, and on which node.
//!
//! One step serves scaling, rollouts, restarts and rollbacks alike: instances either fit the [`Course`] or are to
//! be replaced. Capacity that is missing altogether is created at once; replacement goes in batches.
//!
//! Invariants: at most `wanted + parallelism` places are taken; start-first never withdraws a ready instance before
//! another counts in its stead; stop-first never starts an instance before the one it replaces has ended.

use std::collections::{BTreeMap, BTreeSet};

use keel_model::{Assignment, Goal, InstanceId, NodeName, Order, Scale, Service, ServiceName};

use crate::draft::Draft;
use crate::restart;
use crate::rollout::judge::{counts, policy};
use crate::rollout::{Course, Direction};
use crate::view::is_job;
use crate::withdraw;

/// How many instances a service should have.
pub(crate) fn wanted(draft: &Draft<'_>, service: &Service) -> usize {
    match service.scale {
        Scale::Replicated(n) | Scale::Job(n) => usize::try_from(n).unwrap_or(usize::MAX),
        Scale::Global | Scale::GlobalJob => draft.observed.nodes.len(),
    }
}

/// The places that count towards [`wanted`]: where each node has its own, not those of nodes that are away.
pub(crate) fn places<'d>(
    draft: &'d Draft<'_>,
    name: &'d ServiceName,
    service: &'d Service,
) -> impl Iterator<Item = &'d crate::Instance> + 'd {
    let nodes = &draft.observed.nodes;
    draft.slots(name).filter(move |i| !per_node(service) || nodes.contains(i.node()))
}

/// Whether each node has an instance of its own.
fn per_node(service: &Service) -> bool {
    matches!(service.scale, Scale::Global | Scale::GlobalJob)
}

/// Whether there is any machine to put work on.
pub(crate) fn has_nodes(draft: &Draft<'_>) -> bool {
    !draft.observed.nodes.is_empty()
}

/// The nodes that can take work and those that have some. A node that is away for a while keeps its instances.
fn nodes_of(draft: &Draft<'_>, name: &ServiceName) -> BTreeSet<NodeName> {
    let listed = draft.observed.nodes.iter().cloned();
    listed.chain(draft.slots(name).map(|i| i.node().clone())).collect()
}

/// What one service is steered by in this turn.
struct Steering<'a> {
    name: &'a ServiceName,
    service: &'a Service,
    course: Course,
    order: Order,
    /// Instances replaced at the same time.
    parallelism: usize,
}

/// One place that is taken.
#[derive(Clone, Debug)]
struct Slot {
    id: InstanceId,
    serial: u64,
    /// Takes requests.
    ready: bool,
    /// Has done what it was for.
    completed: bool,
    /// No process of it is left.
    ended: bool,
    /// Counts as a working instance of its revision.
    counts: bool,
    /// On its way through a drain, to be started again.
    moving: bool,
    /// Only the restart epoch is old: it can be started again in place.
    same_revision: bool,
}

impl Slot {
    /// Whether it is worth keeping until there is a better one.
    fn useful(&self) -> bool {
        self.ready || self.completed
    }
}

/// A group of places: the whole service, or those of one node.
#[derive(Debug, Default)]
struct Cell {
    node: Option<NodeName>,
    wanted: usize,
    /// Places as they should be.
    new: Vec<Slot>,
    /// Places to be replaced.
    old: Vec<Slot>,
    /// Instances that are leaving and have not ended.
    leaving: usize,
}

impl Cell {
    /// What comes first here. Where all that is old has run to completion nothing can clash: it is kept until the
    /// new has completed too, so that taking it back does not run it again.
    fn order(&self, steering: &Steering<'_>) -> Order {
        let idle = !self.old.is_empty() && self.old.iter().all(|slot| slot.completed);
        if idle && self.leaving == 0 && !is_job(steering.service) {
            Order::StartFirst
        } else {
            steering.order
        }
    }
}

/// Brings number, revision and place of the instances of a service closer to what is wanted.
pub(crate) fn step(draft: &mut Draft<'_>, name: &ServiceName, service: &Service, course: Course) {
    let policy = policy(service, course.direction);
    let all_at_once = policy.parallelism == 0 || course.direction == Direction::First;
    let parallelism = if all_at_once {
        wanted(draft, service).max(1)
    } else {
        usize::try_from(policy.parallelism).unwrap_or(usize::MAX)
    };
    let order = if is_job(service) || restarts_in_place(draft, name, &course) {
        Order::StopFirst
    } else {
        policy.order.unwrap_or_else(|| service.order())
    };
    let steering = Steering { name, service, course, order, parallelism };
    revive(draft, &steering);
    let cells = census(draft, &steering);
    let mut budget = budget(draft, &steering, &cells);
    for cell in cells {
        match cell.order(&steering) {
            Order::StartFirst => start_first(draft, &steering, cell, &mut budget),
            Order::StopFirst => stop_first(draft, &steering, cell, &mut budget),
        }
    }
}

/// Whether the user asked for a restart that keeps what was written into the instances.
fn restarts_in_place(draft: &Draft<'_>, name: &ServiceName, course: &Course) -> bool {
    let intent = draft.desired.record.intents.get(name);
    course.direction == Direction::Restart && intent.is_some_and(|intent| intent.in_place)
}

/// Stopped instances of a service that should run: started again if they fit and are needed, else removed.
fn revive(draft: &mut Draft<'_>, steering: &Steering<'_>) {
    let evidence = draft.evidence(steering.name);
    let stopped: Vec<Assignment> = draft
        .of(steering.name)
        .filter(|i| i.assignment.goal == Goal::Stop && Some(&i.assignment.id) != evidence.as_ref())
        .map(|i| i.assignment.clone())
        .collect();
    for assignment in stopped {
        let here = |i: &&crate::Instance| same_cell(steering, i.node(), &assignment.node);
        let taken = draft.slots(steering.name).filter(here).count();
        let room = match steering.service.scale {
            Scale::Replicated(n) | Scale::Job(n) => {
                taken < usize::try_from(n).unwrap_or(usize::MAX)
            }
            Scale::Global | Scale::GlobalJob => taken == 0,
        };
        if room && steering.course.fits(&assignment) {
            draft.assign(&assignment.id, |a| a.failures = 0);
            restart::start_again(draft, &assignment.id, "started by the user");
            draft.progress(steering.name);
        } else {
            withdraw::withdraw(draft, &assignment.id, Goal::Remove, "not needed any more");
        }
    }
}

/// Whether two nodes belong to the same cell.
fn same_cell(steering: &Steering<'_>, one: &NodeName, other: &NodeName) -> bool {
    !per_node(steering.service) || one == other
}

/// Sorts the instances of a service into cells.
fn census(draft: &Draft<'_>, steering: &Steering<'_>) -> Vec<Cell> {
    let mut cells: BTreeMap<Option<NodeName>, Cell> = BTreeMap::new();
    let per_node = per_node(steering.service);
    if per_node {
        for node in nodes_of(draft, steering.name) {
            let cell = Cell { node: Some(node.clone()), wanted: 1, ..Cell::default() };
            cells.insert(Some(node), cell);
        }
    } else {
        let wanted = wanted(draft, steering.service);
        cells.insert(None, Cell { wanted, ..Cell::default() });
    }
    for instance in draft.of(steering.name) {
        let key = per_node.then(|| instance.node().clone());
        let cell = cells.entry(key).or_default();
        if !instance.is_slot() {
            cell.leaving += usize::from(!instance.has_ended());
            continue;
        }
        let slot = slot(draft, steering, instance);
        if steering.course.fits(&instance.assignment) {
            cell.new.push(slot);
        } else {
            cell.old.push(slot);
        }
    }
    cells.into_values().collect()
}

fn slot(draft: &Draft<'_>, steering: &Steering<'_>, instance: &crate::Instance) -> Slot {
    let Steering { name, service, course, .. } = steering;
    let rollout = draft.rollouts.get(*name);
    Slot {
        id: instance.assignment.id.clone(),
        serial: instance.serial(),
        ready: instance.is_ready(),
        completed: instance.has_completed(service),
        ended: instance.has_ended(),
        counts: rollout
            .is_some_and(|r| counts(instance, service, r, course.direction, &draft.clock)),
        moving: instance.assignment.goal == Goal::Drain,
        same_revision: instance.assignment.revision == course.revision,
    }
}

/// How many replacements may begin now: none while the last batch is under way or its delay runs.
fn budget(draft: &Draft<'_>, steering: &Steering<'_>, cells: &[Cell]) -> usize {
    if steering.course.direction == Direction::First {
        return usize::MAX;
    }
    let slots = || cells.iter().flat_map(|cell| cell.new.iter().chain(&cell.old));
    let unproven = cells.iter().flat_map(|cell| &cell.new).any(|slot| !slot.counts);
    let moving = slots().any(|slot| slot.moving);
    if unproven || moving || !pause_over(draft, steering, cells) {
        return 0;
    }
    steering.parallelism
}

/// Whether the pause between two batches is over.
fn pause_over(draft: &Draft<'_>, steering: &Steering<'_>, cells: &[Cell]) -> bool {
    let policy = policy(steering.service, steering.course.direction);
    let healthy = match steering.course.direction {
        Direction::Forward => policy.min_healthy_time,
        Direction::First | Direction::Restart | Direction::Back => std::time::Duration::ZERO,
    };
    let rested = |slot: &Slot| {
        let instance = draft.instances.get(&slot.id);
        let wait = healthy + policy.delay;
        instance.is_none_or(|i| i.ready_since().is_none() || i.ready_for(wait, &draft.clock))
    };
    let replacing = cells.iter().any(|cell| !cell.old.is_empty());
    policy.delay.is_zero() || !replacing || cells.iter().flat_map(|cell| &cell.new).all(rested)
}

/// The new one starts and counts before the old one is withdrawn.
fn start_first(draft: &mut Draft<'_>, steering: &Steering<'_>, mut cell: Cell, budget: &mut usize) {
    withdraw_useless(draft, steering, &mut cell);
    let proven = cell.new.iter().filter(|slot| slot.counts).count();
    let keep = cell.old.len().min(cell.wanted.saturating_sub(proven));
    let room = cell.wanted.saturating_add(steering.parallelism).saturating_sub(keep);
    let surplus_old = cell.old.len() - keep;
    withdraw_worst(draft, steering, &mut cell.old, surplus_old, Oldest::First);
    let surplus_new = cell.new.len().saturating_sub(cell.wanted.min(room));
    withdraw_worst(draft, steering, &mut cell.new, surplus_new, Oldest::Last);

    let taken = cell.new.len() + cell.old.len();
    let missing = cell.wanted.saturating_sub(taken);
    let ahead = cell.wanted.saturating_sub(cell.new.len() + missing);
    let free =
        cell.wanted.saturating_add(steering.parallelism).saturating_sub(taken + cell.leaving);
    let batch = ahead.min(*budget).min(free.saturating_sub(missing));
    *budget = budget.saturating_sub(batch);
    create(draft, steering, &cell, missing + batch);
}

/// The old one ends before the new one starts.
fn stop_first(draft: &mut Draft<'_>, steering: &Steering<'_>, mut cell: Cell, budget: &mut usize) {
    withdraw_useless(draft, steering, &mut cell);
    let surplus = (cell.new.len() + cell.old.len()).saturating_sub(cell.wanted);
    let from_old = surplus.min(cell.old.len());
    cell.leaving += withdraw_worst(draft, steering, &mut cell.old, from_old, Oldest::First);
    cell.leaving +=
        withdraw_worst(draft, steering, &mut cell.new, surplus - from_old, Oldest::Last);
    let full = cell.new.len() + cell.old.len() >= cell.wanted && cell.leaving == 0;
    if full || steering.course.direction == Direction::First {
        let batch = cell.old.len().min(*budget);
        *budget = budget.saturating_sub(batch);
        cell.leaving += replace_in_place(draft, steering, &mut cell, batch);
    }
    let taken = cell.new.len() + cell.old.len() + cell.leaving;
    create(draft, steering, &cell, cell.wanted.saturating_sub(taken));
}

/// Old instances that serve nobody and will not: they go at once, their places are free for new ones.
fn withdraw_useless(draft: &mut Draft<'_>, steering: &Steering<'_>, cell: &mut Cell) {
    // Neither a revision that failed nor one that never was in force gets more time to come right.
    let lost = matches!(steering.course.direction, Direction::Back | Direction::First);
    // Until the new revision has proved itself, what is down of the old one is better started again.
    let stop_first = steering.order == Order::StopFirst;
    let trusted = stop_first || cell.new.iter().any(|slot| slot.counts);
    let useless = |slot: &Slot| {
        let in_place = stop_first && slot.same_revision;
        // On its way through a drain to a restart that nobody wants any more.
        let overtaken = slot.moving && !slot.same_revision;
        let down = slot.ended && trusted;
        !slot.completed && !in_place && (down || overtaken || (lost && !slot.ready))
    };
    let (gone, kept): (Vec<Slot>, Vec<Slot>) = cell.old.drain(..).partition(useless);
    cell.old = kept;
    for slot in gone {
        cell.leaving += usize::from(!slot.ended);
        let next = last_goal(draft, steering.name, &slot.id);
        withdraw::withdraw(draft, &slot.id, next, "replaced by another revision");
    }
}

/// Withdraws `count` old places in favour of new ones: started again in place where only the epoch is old.
/// Returns how many leave and have not ended.
fn replace_in_place(
    draft: &mut Draft<'_>,
    steering: &Steering<'_>,
    cell: &mut Cell,
    count: usize,
) -> usize {
    let mut batch = cell.old.clone();
    batch.sort_by_key(|slot| (slot.useful(), slot.serial));
    batch.truncate(count);
    let mut leaving = 0;
    for slot in batch {
        if slot.moving {
            continue;
        }
        if slot.same_revision {
            draft.assign(&slot.id, |a| a.failures = 0);
            withdraw::withdraw(draft, &slot.id, Goal::Run, "restarted by the user");
        } else {
            cell.old.retain(|other| other.id != slot.id);
            leaving += usize::from(!slot.ended);
            let next = last_goal(draft, steering.name, &slot.id);
            withdraw::withdraw(draft, &slot.id, next, "replaced by another revision");
        }
    }
    leaving
}

/// Among equally good instances, which goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Oldest {
    First,
    Last,
}

/// Withdraws the `count` least useful of `slots`; returns how many of them have not ended.
fn withdraw_worst(
    draft: &mut Draft<'_>,
    steering: &Steering<'_>,
    slots: &mut Vec<Slot>,
    count: usize,
    oldest: Oldest,
) -> usize {
    if count == 0 {
        return 0;
    }
    let age = |slot: &Slot| match oldest {
        Oldest::First => slot.serial,
        Oldest::Last => u64::MAX - slot.serial,
    };
    slots.sort_by_key(|slot| (slot.useful(), slot.counts, age(slot)));
    let reason = match oldest {
        Oldest::First => "replaced",
        Oldest::Last => "scaled down",
    };
    let mut alive = 0;
    for slot in slots.drain(..count.min(slots.len())) {
        alive += usize::from(!slot.ended);
        let next = last_goal(draft, steering.name, &slot.id);
        withdraw::withdraw(draft, &slot.id, next, reason);
    }
    alive
}

/// What an instance that leaves becomes: the one that shows why a rollout failed stays visible for a while.
fn last_goal(draft: &Draft<'_>, service: &ServiceName, id: &InstanceId) -> Goal {
    if draft.evidence(service).as_ref() == Some(id) { Goal::Stop } else { Goal::Remove }
}

/// Creates `count` instances in a cell, each where the service has the fewest.
fn create(draft: &mut Draft<'_>, steering: &Steering<'_>, cell: &Cell, count: usize) {
    if count == 0 {
        return;
    }
    let nodes: Vec<NodeName> = match &cell.node {
        None => draft.observed.nodes.clone(),
        Some(node) => draft.observed.nodes.iter().filter(|n| *n == node).cloned().collect(),
    };
    let steady = draft.rollouts.get(steering.name).is_some_and(|r| r.state.is_final());
    let reason = match steering.course.direction {
        Direction::First if !steady => "first deployment",
        Direction::Forward if !steady => "new revision",
        Direction::Restart if !steady => "restart",
        Direction::Back if !steady => "rollback",
        _ => "wanted",
    };
    for _ in 0..count {
        let Some(node) = emptiest(draft, steering.name, &nodes) else { return };
        let Course { revision, epoch, .. } = &steering.course;
        draft.create(steering.name, revision, &node, *epoch, reason);
        draft.progress(steering.name);
    }
}

/// The node with the fewest instances of the service, then of the stack, then the first by name.
fn emptiest(draft: &Draft<'_>, service: &ServiceName, nodes: &[NodeName]) -> Option<NodeName> {
    let load = |node: &&NodeName| {
        let own = draft.of(service).filter(|i| i.node() == *node && i.is_slot()).count();
        let all = draft.instances.values().filter(|i| i.node() == *node && i.is_slot()).count();
        (own, all, (*node).clone())
    };
    nodes.iter().min_by_key(load).cloned()
}
