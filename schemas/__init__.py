"""What travels on topics: Avro schemas, the columnar codec, compatibility rules, registry client."""
