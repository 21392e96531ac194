"""A ranker measured against its teacher."""
