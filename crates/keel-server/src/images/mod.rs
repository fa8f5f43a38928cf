//! Images of container services: made present before anything is changed, pinned, and kept for the last revisions.

mod again;
pub mod external;
mod kept;
mod pin;
mod present;

pub use again::{Again, note};
pub use kept::Kept;
pub use pin::pin;
pub use present::Presence;

use keel_container::images::Error;

use crate::error::Refusal;

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let refusal = Self::new(error.code(), error.to_string());
        match error.hint() {
            Some(hint) => refusal.hint(hint),
            None => refusal,
        }
    }
}
