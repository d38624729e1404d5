"""Builds the site: pages made from results/ and from the code, links, mathematics, tutorials."""
