//! The cart's contents as a signed token that the customer holds: no replica of `cart` has state, so none can lose it.
//!
//! Format: `base64url("sku*quantity,…") . base64url(first 16 bytes of HMAC-SHA-256)`. A token that is not ours reads
//! as an empty cart. Prices are never in it.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Different products in a cart.
pub const MAX_LINES: usize = 24;
/// Pieces of one product.
pub const MAX_QUANTITY: u32 = 99;
const MAC_BYTES: usize = 16;

/// Quantity by sku.
pub type Contents = BTreeMap<String, u32>;

/// Writes `contents` as a token; an empty cart is an empty token.
pub fn encode(contents: &Contents, secret: &str) -> String {
    if contents.is_empty() {
        return String::new();
    }
    let lines: Vec<String> = contents.iter().map(|(sku, count)| format!("{sku}*{count}")).collect();
    let text = lines.join(",");
    let mac = mac(&text, secret).finalize().into_bytes();
    format!("{}.{}", URL_SAFE_NO_PAD.encode(&text), URL_SAFE_NO_PAD.encode(&mac[..MAC_BYTES]))
}

/// Reads a token; `None` if it was not written with this secret.
pub fn decode(token: &str, secret: &str) -> Option<Contents> {
    if token.is_empty() {
        return Some(Contents::new());
    }
    let (text, signature) = token.split_once('.')?;
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    if signature.len() != MAC_BYTES {
        return None;
    }
    mac(&text, secret).verify_truncated_left(&signature).ok()?;
    text.split(',')
        .map(|line| {
            let (sku, quantity) = line.split_once('*')?;
            Some((sku.to_owned(), quantity.parse().ok()?))
        })
        .collect()
}

fn mac(text: &str, secret: &str) -> Hmac<Sha256> {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(text.as_bytes());
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_and_a_forged_one_does_not() {
        let contents = Contents::from([("lantern".into(), 2), ("mug".into(), 1)]);
        let token = encode(&contents, "key");
        assert_eq!(decode(&token, "key"), Some(contents));
        assert_eq!(decode(&token, "other key"), None);
        assert_eq!(decode(&token[1..], "key"), None);
        assert_eq!(decode("nonsense", "key"), None);
        assert_eq!(decode(token.split_once('.').unwrap().0, "key"), None);
        assert_eq!(decode("", "key"), Some(Contents::new()));
    }
}
