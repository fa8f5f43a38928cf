//! The account at an authority. Its key is in the store before the authority hears of it: a crash in between makes no
//! second account.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use instant_acme::{Account, Key};
use keel_model::Acme;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use crate::client::{Client, RetryAfter};
use crate::order::Failure;
use crate::records::authority_id;
use crate::vault::Vault;

/// An account as it is kept.
#[derive(Serialize, Deserialize)]
struct StoredAccount {
    directory: String,
    email: Option<String>,
    /// PKCS #8, base64.
    key: String,
    /// What the authority calls it; absent until it has answered.
    id: Option<String>,
}

fn key_of(acme: &Acme) -> String {
    format!("accounts/{}", authority_id(acme))
}

/// The account at the authority of `acme`; made if there is none.
pub async fn open(vault: &Vault, acme: &Acme, retry_after: RetryAfter) -> Result<Account, Failure> {
    let stored = vault.get(&key_of(acme)).await?;
    let stored = stored.and_then(|value| serde_json::from_slice::<StoredAccount>(&value).ok());
    let mut stored = match stored {
        Some(stored) => stored,
        None => begin(vault, acme).await?,
    };
    let key = STANDARD
        .decode(&stored.key)
        .map_err(|error| Failure::new(format!("the key of the account can't be read: {error}")))?;
    let key = PrivatePkcs8KeyDer::from(key);
    let client = Client::new(acme.ca.as_deref(), retry_after).map_err(Failure::new)?;
    let builder = Account::builder_with_http(Box::new(client));
    let directory = acme.directory.clone();
    if let Some(id) = stored.id {
        return Ok(builder.from_parts(id, key, directory).await?);
    }
    let pair = (Key::from_pkcs8_der(key.clone_key())?, PrivateKeyDer::Pkcs8(key));
    // Gives the account of the key if there is one.
    let (account, _) = builder.create_from_key(pair, directory).await?;
    if let Some(email) = &acme.email {
        account.update_contacts(&[&format!("mailto:{email}")]).await?;
    }
    stored.id = Some(account.id().to_owned());
    save(vault, acme, &stored).await?;
    Ok(account)
}

async fn begin(vault: &Vault, acme: &Acme) -> Result<StoredAccount, Failure> {
    let (_, key) = Key::generate_pkcs8()?;
    let stored = StoredAccount {
        directory: acme.directory.clone(),
        email: acme.email.clone(),
        key: STANDARD.encode(key.secret_pkcs8_der()),
        id: None,
    };
    save(vault, acme, &stored).await?;
    Ok(stored)
}

/// Forgets what the authority calls the account, which it does not know any more. The key stays.
pub async fn reopen(vault: &Vault, acme: &Acme) -> Result<(), Failure> {
    let stored = vault.get(&key_of(acme)).await?;
    let stored = stored.and_then(|value| serde_json::from_slice::<StoredAccount>(&value).ok());
    if let Some(mut stored) = stored {
        stored.id = None;
        save(vault, acme, &stored).await?;
    }
    Ok(())
}

async fn save(vault: &Vault, acme: &Acme, account: &StoredAccount) -> Result<(), Failure> {
    vault.put(&key_of(acme), account).await
}
