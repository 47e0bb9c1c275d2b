//! Compiles `proto/tamis/**/*.proto` into Rust with protox, so that no system `protoc` is needed, and keeps the
//! descriptor set, from which the gateway takes its routes and answers reflection.
use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const CONTRACTS: &[&str] = &[
    "tamis/classification/v1/classification_service.proto",
    "tamis/common/v1/common.proto",
    "tamis/embedding/v1/embedding_service.proto",
    "tamis/gateway/v1/gateway_service.proto",
    "tamis/model/v1/model_service.proto",
    "tamis/vision/v1/vision_service.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/tamis");
    let descriptors = protox::Compiler::new(["proto"])?
        .include_source_info(true)
        .include_imports(true)
        .open_files(CONTRACTS)?
        .file_descriptor_set();
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Image bytes and vectors are reference counted slices of the message, not copies.
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
