//! Which requests a [`Rule`] is for, in a form that can be compared: sets of conditions, any of which is enough.
//!
//! Two routes clash when a set of one is a set of the other: then the same requests satisfy both for the same reasons.
//! Rules that overlap only partly do not clash; there the priority decides, as in Traefik. Pure.

use std::collections::BTreeSet;

use crate::Rule;

/// Conditions that must all hold, as text.
pub type Claim = BTreeSet<String>;

/// A rule with more alternatives than this is compared as a whole.
const MAX_CLAIMS: usize = 256;

/// The alternatives of a rule.
#[must_use]
pub fn claims(rule: &Rule) -> BTreeSet<Claim> {
    alternatives(rule).unwrap_or_else(|| BTreeSet::from([Claim::from([rule.to_string()])]))
}

/// `None` when there are too many.
fn alternatives(rule: &Rule) -> Option<BTreeSet<Claim>> {
    let found = match rule {
        Rule::Any(rules) => {
            let mut all = BTreeSet::new();
            for rule in rules {
                all.extend(alternatives(rule)?);
            }
            all
        }
        Rule::All(rules) => {
            let mut all = BTreeSet::from([Claim::new()]);
            for rule in rules {
                let further = alternatives(rule)?;
                if all.len() * further.len() > MAX_CLAIMS {
                    return None;
                }
                let joined = |a: &Claim| {
                    let a = a.clone();
                    further.iter().map(move |b| a.union(b).cloned().collect::<Claim>())
                };
                all = all.iter().flat_map(joined).collect();
            }
            all
        }
        // Every path begins with `/`.
        Rule::PathPrefix(path) if path == "/" => BTreeSet::from([Claim::new()]),
        other => BTreeSet::from([Claim::from([other.to_string()])]),
    };
    (found.len() <= MAX_CLAIMS).then_some(found)
}

/// A claim in the words of a rule.
#[must_use]
pub fn describe(claim: &Claim) -> String {
    if claim.is_empty() {
        return "every request".to_owned();
    }
    claim.iter().map(String::as_str).collect::<Vec<_>>().join(" && ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Rule {
        Rule::Host(name.to_owned())
    }

    fn path(prefix: &str) -> Rule {
        Rule::PathPrefix(prefix.to_owned())
    }

    fn clash(a: &Rule, b: &Rule) -> Option<String> {
        claims(a).intersection(&claims(b)).next().map(describe)
    }

    #[test]
    fn the_same_host_and_path_clash_however_they_are_written() {
        let both = Rule::Any(vec![host("a"), host("b")]);
        let long = Rule::All(vec![both.clone(), path("/x")]);
        let short = Rule::All(vec![path("/x"), host("b")]);
        assert_eq!(clash(&long, &short).as_deref(), Some("Host(`b`) && PathPrefix(`/x`)"));
        assert_eq!(
            clash(&both, &Rule::All(vec![host("a"), path("/")])).as_deref(),
            Some("Host(`a`)")
        );
        assert_eq!(clash(&Rule::default(), &path("/")).as_deref(), Some("every request"));
        assert_eq!(clash(&host("a"), &short), None);
        assert_eq!(clash(&Rule::Not(Box::new(host("a"))), &host("a")), None);
    }

    #[test]
    fn work_is_bounded() {
        let hosts = |tag: &str| Rule::Any((0..20).map(|n| host(&format!("{tag}{n}"))).collect());
        let rule = Rule::All(vec![hosts("a"), hosts("b"), hosts("c")]);
        assert_eq!(claims(&rule).len(), 1);
        assert!(clash(&rule, &rule).is_some());
    }
}
