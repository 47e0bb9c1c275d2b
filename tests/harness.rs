//! Starts meshes and talks to them. It knows how, the tests know what.

mod admin;
mod binary;
mod connection;
mod correlation;
mod fixtures;
mod folder;
mod hub;
mod mesh;
mod page;
mod pictures;
mod process;
mod requests;
mod roles;

use std::time::Duration;

pub(crate) use self::{
    admin::{config, metric, metrics},
    binary::{Finished, failed, succeeded, tamis, tamis_with},
    connection::{Channels, Connection, GATEWAY, ORIGIN, connect, credentials, refused, refused_field},
    correlation::{correlation, ranks},
    fixtures::{Photo, grpcurl, lee_similarities, lee_texts, news_sentences, photos},
    folder::Folder,
    hub::{COMMIT, Flaw, Hub, Repository, TOKEN},
    mesh::{Mesh, mesh},
    page::{Page, mesh_page},
    pictures::{png, png_claiming},
    process::{children, is_alive, resident, resident_without_code, signal},
    requests::{classify, digest, embed, error_reason, image, long_text, see, upload, vector},
    roles::Roles,
};

/// Nothing that a test waits for takes longer on a machine that works, however busy it is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for something that announces itself to nobody: asks again and again, in vain for no longer than [`PATIENCE`].
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        let mut often = tokio::time::interval(Duration::from_millis(20));
        loop {
            often.tick().await;
            if let Some(answer) = ask().await {
                return answer;
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} in vain: {what}"))
}
