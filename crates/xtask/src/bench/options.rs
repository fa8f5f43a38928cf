//! What `cargo xtask bench` was asked for.

/// How the benches are run that can be run in more than one way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Two short rounds, for somebody who changes the bench or the proxy; the figures are not kept.
    pub quick: bool,
    /// Only cases whose name begins with one of these; all if empty. The figures are not kept either.
    pub cases: Vec<String>,
}

impl Options {
    /// The names of the benches, and the options.
    pub fn parse(arguments: &[String]) -> Result<(Vec<String>, Self), String> {
        let (mut names, mut options) = (Vec::new(), Self::default());
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => options.quick = true,
                "--case" => {
                    options.cases.push(arguments.next().ok_or("--case wants a name")?.clone());
                }
                option if option.starts_with('-') => return Err(format!("no option {option}")),
                name => names.push(name.to_owned()),
            }
        }
        Ok((names, options))
    }

    /// Whether the case `name` is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.cases.is_empty() || self.cases.iter().any(|case| name.starts_with(case))
    }

    /// Whether this is the whole bench, so that its figures are worth keeping.
    pub fn is_whole(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::Options;

    #[test]
    fn options_may_stand_anywhere_and_unknown_ones_are_refused() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let (names, options) = Options::parse(&words("proxy --case http --quick heal")).unwrap();
        assert_eq!(names, ["proxy", "heal"]);
        assert!(options.quick && options.wants("http-64") && !options.wants("tls"));
        assert!(!options.is_whole());
        assert!(Options::parse(&words("proxy --fast")).is_err());
        assert!(Options::parse(&words("proxy --case")).is_err());
        assert!(Options::default().wants("anything") && Options::default().is_whole());
    }
}
