"""The custom resources as pydantic models; the CRD manifests are generated from them."""
