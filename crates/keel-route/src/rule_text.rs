//! What follows from the text of a rule: its priority, and the hosts that it names.

use keel_model::Rule;

/// The priority of a route that states none.
#[must_use]
pub fn default_priority(rule: &Rule) -> i64 {
    rule.default_priority()
}

/// The hosts that a rule names (in `Host` and `Sni`, wildcards included), for certificates. Sorted, each once.
#[must_use]
pub fn rule_hosts(rule: &Rule) -> Vec<&str> {
    let mut hosts = Vec::new();
    collect(rule, &mut hosts);
    hosts.sort_unstable();
    hosts.dedup();
    hosts
}

fn collect<'r>(rule: &'r Rule, hosts: &mut Vec<&'r str>) {
    match rule {
        Rule::All(rules) | Rule::Any(rules) => rules.iter().for_each(|rule| collect(rule, hosts)),
        Rule::Host(host) => hosts.push(host),
        Rule::Sni(name) if name != "*" => hosts.push(name),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Rule {
        Rule::Host(name.to_owned())
    }

    #[test]
    fn the_longer_rule_wins_and_everything_comes_last() {
        let all = Rule::All(vec![]);
        let long = Rule::All(vec![host("a"), Rule::Path("/".into())]);
        assert_eq!(default_priority(&all), 0);
        assert_eq!(default_priority(&host("a")), 9);
        assert!(default_priority(&host("a")) < default_priority(&long));
    }

    #[test]
    fn hosts() {
        let rule = Rule::All(vec![
            Rule::Any(vec![host("b"), host("*.a"), host("b")]),
            Rule::Not(Box::new(host("c"))),
            Rule::Sni("*".into()),
            Rule::Sni("d".into()),
        ]);
        assert_eq!(rule_hosts(&rule), ["*.a", "b", "d"]);
    }
}
