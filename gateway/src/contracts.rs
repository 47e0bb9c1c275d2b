//! The contracts of the mesh: Tamis' own, those that the gateway answers itself, and those that the configuration adds.

use std::{collections::HashMap, fs, sync::Arc};

use tonic_reflection::server::Builder;

use crate::{
    Error,
    mesh::{LocalService, Route, Target},
    metrics::{MethodMetrics, Metrics},
    route::{Method, Routes, methods},
};

/// Descriptor sets as they were compiled, and the methods in them.
pub(crate) struct Contracts {
    sets: Vec<Vec<u8>>,
    pub(crate) methods: Vec<Arc<Method>>,
}

impl Contracts {
    /// The built-in contracts and those in the files.
    ///
    /// # Errors
    /// When a file cannot be read or is no descriptor set.
    pub(crate) fn read(paths: &[String]) -> Result<Self, Error> {
        let own = [
            proto::DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
            // Details of errors travel as Any: with their types here, grpcurl prints them readable.
            tonic_types::pb::FILE_DESCRIPTOR_SET,
        ];
        let mut contracts = Self { sets: Vec::new(), methods: Vec::new() };
        for set in own {
            contracts.add("built in", set.to_vec())?;
        }
        for path in paths {
            let broken = |error: std::io::Error| Error::Contract(path.clone(), error.to_string());
            contracts.add(path, fs::read(path).map_err(broken)?)?;
        }
        Ok(contracts)
    }

    /// The method at a path.
    pub(crate) fn method(&self, path: &str) -> Option<&Arc<Method>> {
        self.methods.iter().find(|method| method.path == path)
    }

    /// Routes for the methods of `services`; methods of other contracts have none.
    ///
    /// # Errors
    /// When one of the services has no contract.
    pub(crate) fn routes(
        &self,
        services: &HashMap<String, Target>,
        metrics: &Arc<Metrics>,
    ) -> Result<Routes<Route>, Error> {
        if let Some(name) = services.keys().find(|name| !self.has(name)) {
            let message = format!("no contract has the service `{name}`: add its descriptor set to `descriptors`");
            return Err(Error::Settings(message));
        }
        let route = |method: &Arc<Method>| {
            let target = services.get(&*method.service)?.clone();
            let metrics = Arc::new(MethodMetrics::of(metrics, method));
            Some((method.path.clone(), Route { method: Arc::clone(method), target, metrics }))
        };
        Ok(self.methods.iter().filter_map(route).collect())
    }

    /// Reflection v1 and v1alpha, with all contracts, listing what is served.
    ///
    /// # Errors
    /// When the contracts contradict themselves.
    pub(crate) fn reflection(&self, served: &[&str]) -> Result<[(String, LocalService); 2], Error> {
        let builder = || {
            let builder = Builder::configure().include_reflection_service(false);
            let builder =
                self.sets.iter().fold(builder, |builder, set| builder.register_encoded_file_descriptor_set(set));
            served.iter().fold(builder, |builder, name| builder.with_service_name(*name))
        };
        let broken = |error: tonic_reflection::server::Error| Error::Contract("reflection".into(), error.to_string());
        let v1 = builder().build_v1().map_err(broken)?;
        let v1alpha = builder().build_v1alpha().map_err(broken)?;
        Ok([(REFLECTION[0].into(), LocalService::new(v1)), (REFLECTION[1].into(), LocalService::new(v1alpha))])
    }

    fn has(&self, service: &str) -> bool {
        self.methods.iter().any(|method| *method.service == *service)
    }

    fn add(&mut self, path: &str, set: Vec<u8>) -> Result<(), Error> {
        let found = methods([set.as_slice()]).map_err(|error| Error::Contract(path.to_owned(), error))?;
        self.methods.extend(found.into_iter().map(Arc::new));
        self.sets.push(set);
        Ok(())
    }
}

/// Names of the reflection services.
pub(crate) const REFLECTION: [&str; 2] =
    ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_without_a_contract_is_refused() {
        let contracts = Contracts::read(&[]).unwrap();
        let reflection = contracts.reflection(&[]).unwrap();
        let target = Target::Local(reflection[0].1.clone());
        let metrics = Arc::new(Metrics::new(&mut prometheus_client::registry::Registry::default(), &[]));
        let error = contracts.routes(&HashMap::from([("a.B".to_owned(), target)]), &metrics).err().unwrap();
        assert!(error.to_string().contains("`a.B`"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_descriptor_set_is_refused_by_name() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml").to_owned();
        assert!(Contracts::read(&[path]).err().unwrap().to_string().contains("Cargo.toml"));
        assert!(Contracts::read(&["missing.bin".into()]).err().unwrap().to_string().contains("missing.bin"));
    }
}
