//! Who waits for a place, in the order in which they came.
//!
//! A place that is given back belongs to the first in the line, not to whoever asks at that moment: under load there is
//! always somebody who has just come, and those who wait would wait until their time is over. Who looks elsewhere
//! meanwhile keeps his number.

use std::collections::BTreeMap;

/// A number in the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number(u64);

/// Those who wait; `W` is how one is told.
#[derive(Debug)]
pub struct Line<W> {
    next: u64,
    waiting: BTreeMap<Number, W>,
}

impl<W> Default for Line<W> {
    fn default() -> Self {
        Self { next: 0, waiting: BTreeMap::new() }
    }
}

impl<W> Line<W> {
    /// Takes the last place in the line.
    pub fn join(&mut self, waiter: W) -> Number {
        let number = Number(self.next);
        self.next += 1;
        self.waiting.insert(number, waiter);
        number
    }

    /// Gives a number up, whether its turn had come or not.
    pub fn leave(&mut self, number: Number) {
        self.waiting.remove(&number);
    }

    /// Whether somebody may have one of `free` places: there is one for everybody before him. One without a number comes
    /// last.
    #[must_use]
    pub fn is_turn_of(&self, number: Option<Number>, free: usize) -> bool {
        let before = match number {
            Some(number) => self.waiting.range(..number).take(free).count(),
            None => self.waiting.len(),
        };
        before < free
    }

    /// Those whose turn it is when there are `free` places.
    pub fn first(&self, free: usize) -> impl Iterator<Item = &W> {
        self.waiting.values().take(free)
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_that_comes_later_waits_until_there_is_a_place_for_all_before() {
        let mut line = Line::default();
        assert!(line.is_turn_of(None, 1) && !line.is_turn_of(None, 0));
        let (first, second) = (line.join("a"), line.join("b"));
        assert!(line.is_turn_of(Some(first), 1) && !line.is_turn_of(Some(second), 1));
        assert!(line.is_turn_of(Some(second), 2) && !line.is_turn_of(None, 2));
        assert!(line.is_turn_of(None, 3));
        assert_eq!(line.first(2).collect::<Vec<_>>(), [&"a", &"b"]);
        line.leave(first);
        assert!(line.is_turn_of(Some(second), 1) && !line.is_turn_of(None, 1));
        line.leave(second);
        assert!(line.is_empty() && line.is_turn_of(None, 1));
    }

    proptest! {
        #[test]
        fn places_go_to_those_who_came_first(
            steps in prop::collection::vec((any::<bool>(), 0..5_usize), 0..60),
        ) {
            let mut line = Line::default();
            let mut inside = Vec::new();
            for (n, (joins, free)) in steps.into_iter().enumerate() {
                if joins {
                    line.join(n);
                }
                let turn = line.first(free).next().copied();
                let number = line.waiting.keys().next().copied();
                if let (Some(waiter), Some(number)) = (turn, number) {
                    prop_assert!(line.is_turn_of(Some(number), free));
                    line.leave(number);
                    inside.push(waiter);
                }
            }
            prop_assert!(inside.is_sorted());
        }
    }
}
