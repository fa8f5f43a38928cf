//! The `Date` of answers that the proxy makes by itself (RFC 9110, 6.6.1). Those of services keep their own, or none.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The last second that has a date: of the year 9999.
const LATEST: Duration = Duration::from_secs(253_402_300_799);

thread_local! {
    /// The last date that was asked for on this thread, by its second.
    static LAST: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
}

/// Now, as HTTP writes it. Made once a second.
pub fn now() -> String {
    at(SystemTime::now())
}

fn at(now: SystemTime) -> String {
    // What a clock of another time says is nonsense anyway.
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default().min(LATEST);
    let second = since.as_secs();
    LAST.with_borrow_mut(|(last, text)| {
        if *last != second || text.is_empty() {
            (*last, *text) = (second, httpdate::fmt_http_date(UNIX_EPOCH + since));
        }
        text.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_has_its_own() {
        let after = |millis| at(UNIX_EPOCH + Duration::from_millis(millis));
        assert_eq!(after(784_111_777_000), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(after(784_111_777_999), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(after(784_111_778_000), "Sun, 06 Nov 1994 08:49:38 GMT");
        let before = UNIX_EPOCH.checked_sub(Duration::from_secs(9)).unwrap();
        assert_eq!(at(before), "Thu, 01 Jan 1970 00:00:00 GMT");
        let after = UNIX_EPOCH + 2 * LATEST;
        assert_eq!(at(after), "Fri, 31 Dec 9999 23:59:59 GMT");
    }
}
