//! `arbora devices`

use crate::backend::{self, Found};
use anyhow::Result;
use arbora::attention::{CpuKernels, cpu_kernels};
use clap::Args;
use serde_json::json;
use std::process::ExitCode;

/// Arguments of `devices`.
#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// Print the list as JSON on standard output.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &DevicesArgs) -> Result<ExitCode> {
    let found = backend::find();
    let taken = backend::open(None)
        .map(|(name, _)| name)
        .map_err(|error| super::one_line(&error));
    let kernels = cpu_kernels();
    super::show(&if args.json {
        json!({
            "taken": taken.as_ref().ok(), "refused": taken.as_ref().err(), "backends": found,
            "cpu": kernels.map(|cpu| json!({ "threads": cpu.threads, "instructions": cpu.instructions })),
        })
        .to_string()
    } else {
        text(&found, &taken, kernels)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn text(found: &[Found], taken: &Result<String, String>, kernels: Option<CpuKernels>) -> String {
    let mut lines = vec![match taken {
        Ok(name) => format!("without --backend: {name}"),
        Err(reason) => format!("without --backend: refused: {reason}"),
    }];
    for one in found {
        let state = match &one.reason {
            None => "runs".to_owned(),
            Some(reason) => format!("cannot run: {reason}"),
        };
        let hardware = [&one.adapter, &one.driver].into_iter().flatten();
        let parts = std::iter::once(&state).chain(hardware);
        let parts = parts.map(String::as_str).collect::<Vec<_>>().join(", ");
        lines.push(format!("{:<9}{parts}", one.name));
    }
    if let Some(CpuKernels {
        instructions,
        threads,
    }) = kernels
    {
        lines.push(format!(
            "kernels on the CPU: {threads} threads, {instructions}"
        ));
    }
    lines.join("\n")
}
