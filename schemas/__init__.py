"""What travels on topics: Avro schemas, columnar codec, compatibility rules, registry client."""
