"""`medley profile`: make PerformanceProfiles by measuring an endpoint, by fitting step times, or from data sheets."""
