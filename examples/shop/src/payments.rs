//! Takes pretend money. `POST /charges {amount_cents}` with an `Idempotency-Key` → a receipt number.
//!
//! The number follows from the key alone, so a repeated charge is the same charge on every replica, with no state to
//! lose. Amounts over [`LIMIT_CENTS`] are declined, so that a declined card can be shown.

use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use crate::http::{Call, Failure, Reply};
use crate::ledger::number_from_key;

/// The card's limit.
const LIMIT_CENTS: u64 = 200_000;

/// The service.
#[derive(Debug)]
pub struct Payments;

/// What is to be paid.
#[derive(Debug, Serialize, Deserialize)]
pub struct Charge {
    /// How much.
    pub amount_cents: u64,
}

/// That it was paid.
#[derive(Debug, Serialize, Deserialize)]
pub struct Paid {
    /// Number of the payment.
    pub payment: String,
}

impl Payments {
    /// Answers one request.
    ///
    /// # Errors
    /// 400 without a key, 402 over the limit, 404 elsewhere.
    pub fn answer(&self, call: &Call) -> Result<Reply, Failure> {
        if (&call.method, call.path.as_str()) != (&Method::POST, "/charges") {
            return Err(Failure::not_found(&call.path));
        }
        let charge: Charge = call.json()?;
        let key = call.idempotency_key().ok_or_else(|| {
            Failure::new(StatusCode::BAD_REQUEST, "a charge needs an Idempotency-Key header")
        })?;
        if charge.amount_cents > LIMIT_CENTS {
            let limit = LIMIT_CENTS / 100;
            return Err(Failure::new(
                StatusCode::PAYMENT_REQUIRED,
                format!("The card was declined: its limit is {limit} €. Take something out."),
            ));
        }
        Ok(Reply::json(&Paid { payment: format!("P{}", number_from_key("payment", &key)) }))
    }
}
