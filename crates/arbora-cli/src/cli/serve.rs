//! `arbora serve`

use super::ServeArgs;
use anyhow::Result;
use std::process::ExitCode;

#[cfg(not(feature = "remote"))]
pub fn run(_: ServeArgs) -> Result<ExitCode> {
    Err(crate::remote::not_compiled_in("serve"))
}

#[cfg(feature = "remote")]
pub use served::run;

#[cfg(feature = "remote")]
mod served {
    use super::{ExitCode, Result, ServeArgs};
    use crate::{backend, cli, remote};
    use anyhow::{Context as _, bail};
    use burn::server::{RemoteServer, TokenAuthorizer, WebSocketTransport};
    use serde_json::json;
    use std::net::TcpListener;
    use tracing_subscriber::EnvFilter;

    pub fn run(args: ServeArgs) -> Result<ExitCode> {
        log_problems_alone();
        let count = usize::from(args.devices.get());
        let (name, devices) = backend::open_several(args.backend.as_deref(), count)?;
        if name == "tch" {
            bail!(
                "backend tch: libtorch cannot compute for other processes; serve another backend"
            );
        }
        let mut server = RemoteServer::new(devices);
        if let Some(token) = remote::token() {
            server = server.with_authorizer(TokenAuthorizer::new(token)?);
        }
        let listener = TcpListener::bind(&args.address)
            .with_context(|| format!("cannot listen on {}", args.address))?;
        let address = listener
            .local_addr()
            .with_context(|| format!("cannot listen on {}", args.address))?;
        let url = format!("ws://{address}");
        cli::show(&if args.json {
            json!({ "address": url, "backend": name, "devices": count }).to_string()
        } else {
            format!("{name} at {url}, {count} device(s); Ctrl-C ends")
        })?;
        server.serve(WebSocketTransport::from_listener(listener))?;
        Ok(ExitCode::SUCCESS)
    }

    /// burn's server prints what it does, on standard output; unless the user has asked for more in `RUST_LOG`, only what
    /// went wrong is of interest. It leaves the printing to whom has begun it.
    fn log_problems_alone() {
        let asked = EnvFilter::try_from_default_env();
        let filter = asked.unwrap_or_else(|_| EnvFilter::new("warn"));
        // Refused only where somebody has.
        let _ = tracing_subscriber::fmt().with_env_filter(filter).try_init();
    }
}
